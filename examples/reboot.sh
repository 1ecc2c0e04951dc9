#!/bin/sh
# Loads a guest from its disk and runs it, again after each reboot, until it powers off.
#
#     examples/reboot.sh disk.img vm0
set -u
disk=${1:?usage: reboot.sh DISK NAME} name=${2:?usage: reboot.sh DISK NAME}
while bhyveload -m 512M -d "$disk" "$name"; do
    bhyve -A -H -s 0,hostbridge -s 31,lpc -l com1,stdio "$name" || break
done
bhyvectl --vm="$name" --destroy
