"""A virtual machine as an object with a name: what ``/dev/vmm/NAME`` is to bhyve.

``folder`` is the object on the host: memory, registers and a lock under the user's runtime directory. ``server``
answers for a running machine on a Unix socket in that folder, ``client`` asks there. ``session`` is a run of one named
machine, from taking its folder to giving it back. ``state`` is how a CPU's registers look in files and messages.
"""
