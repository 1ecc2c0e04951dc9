"""The code cache: where translated code lives, how it is found again, and how it is dropped when guest code changes.

The cache is one memfd mapped twice, writable and executable, never both at one address. Blocks are found by the
guest-physical address of their first byte and the mode. Registers are at their places at every block border, so a
dropped block is left alone but for the ways into it: jumps inside its page lead to their own cold exits again
(``Link``), and its entry for the jump caches becomes a jump to its own cold exit, which leads back to the lookup.

All of that is done while vCPUs run the code in question. So what is patched is one aligned quadword, written at once:
the offset of a jump, or the first five bytes of an instruction that is at least so long.
"""

import cython
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)
from cython.cimports.posix.unistd import close, ftruncate
from cython.cimports.pyhyve.vmm.soft.jumps import clear_slot
from cython.cimports.pyhyve.vmm.soft.tlb import tlb_protect
from cython.cimports.pyhyve.vmm.soft.state import (
    ATOMIC,
    MODE_SLOTS,
    MODE_SINGLY,
    MODE_STEP,
    CpuState,
    Engine,
)
from cython.cimports.pyhyve.vmm.soft.threads import fence, lock_code, unlock_code, wait_for_borders

DATA_SIZE = cython.declare(uint64_t, 96 << 20)
INDEX_SIZE = cython.declare(uint32_t, 1 << 20)


def code_create(e, s, size):
    """Allocate the cache of ``e`` with ``size`` bytes of code. 0, or -1 if the host refuses."""
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), calloc(1, cython.sizeof(CodeCache)))
    rw: cython.p_void
    rx: cython.p_void
    data: cython.p_void
    fd: cython.int
    if c == cython.NULL:
        return -1
    fd = memfd_create("pyhyve-code", 1)
    if fd < 0 or ftruncate(fd, size) < 0:
        free(c)
        return -1
    rw = mmap(cython.NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    rx = mmap(cython.NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0)
    close(fd)
    data = mmap(cython.NULL, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    c.page_count = pages_of(e)
    c.pages = cython.cast(cython.pointer(cython.pointer(CodePage)), calloc(c.page_count, 8))
    c.index_size = INDEX_SIZE
    c.index = cython.cast(cython.pointer(cython.pointer(Block)), calloc(INDEX_SIZE, 8))
    if rw == MAP_FAILED or rx == MAP_FAILED or data == MAP_FAILED or c.pages == cython.NULL or c.index == cython.NULL:
        return -1
    c.rw = cython.cast(cython.pointer(uint8_t), rw)
    c.rx = cython.cast(uint64_t, rx)
    c.size = size
    c.data = cython.cast(cython.pointer(uint8_t), data)
    c.data_size = DATA_SIZE
    e.code = c
    return 0


def pages_of(e):
    """How many pages there are up to the end of the highest memory."""
    i: uint32_t
    top: uint64_t = 0
    for i in range(e.region_count):
        if e.regions[i].gpa + e.regions[i].size > top:
            top = e.regions[i].gpa + e.regions[i].size
    return top >> 12


def code_grow(e):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    count: uint64_t = pages_of(e)
    pages: cython.p_void
    if count <= c.page_count:
        return 0
    pages = calloc(count, 8)
    if pages == cython.NULL:
        return -1
    lock_code(e, cython.NULL)  # threads of the VMM do not stop with the world
    free(c.pages)
    c.pages = cython.cast(cython.pointer(cython.pointer(CodePage)), pages)
    c.page_count = count
    code_flush(e)
    unlock_code(e)
    return 0


def code_destroy(e):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    if c == cython.NULL:
        return
    munmap(c.rw, c.size)
    munmap(cython.cast(cython.p_void, c.rx), c.size)
    munmap(c.data, c.data_size)
    free(c.pages)
    free(c.index)
    free(c)
    e.code = cython.NULL


def code_flush(e):
    """Forget every block. Only while the world is stopped."""
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    i: uint64_t
    k: uint32_t
    n: uint32_t
    while c.newest != cython.NULL:
        c.pages[c.newest.number] = cython.NULL
        c.newest = c.newest.before
    for i in range(HASH_SIZE):
        c.hash[i] = cython.NULL
    c.index_count = 0
    c.used = c.start
    c.data_used = 0
    c.flushes += 1
    c.mode_count = 0
    c.crossing_count = 0
    for n in range(e.cpu_count):
        e.cpus[n].slot_mode = NO_MODE
        for k in range(MODE_SLOTS):
            if e.cpus[n].jump_dirty[k]:
                clear_slot(e.cpus[n], k)


def code_alloc(c, size):
    """``size`` bytes that live until the next flush, or NULL."""
    mask: uint64_t = 63 if size >= 64 else 15  # a block's first fields in one line of the host's cache
    at: uint64_t = (c.data_used + mask) & ~mask
    if at + size > c.data_size:
        return cython.NULL
    c.data_used = at + size
    return c.data + at


def hash_of(gpa, mode):
    return cython.cast(uint32_t, ((gpa ^ (cython.cast(uint64_t, mode) << 40)) * HASH_FACTOR) >> (64 - HASH_BITS))


def block_find(c, gpa, mode):
    b: cython.pointer(Block) = c.hash[hash_of(gpa, mode)]
    while b != cython.NULL:
        if b.gpa == gpa and b.mode == mode:
            return b
        b = b.hash_next
    return cython.NULL


def page_of(c, gpa):
    """The CodePage of a guest-physical address, made if it is not there; NULL without memory or outside RAM."""
    number: uint64_t = gpa >> 12
    i: uint32_t
    if number >= c.page_count:
        return cython.NULL
    if c.pages[number] == cython.NULL:
        page: cython.pointer(CodePage) = cython.cast(
            cython.pointer(CodePage), code_alloc(c, cython.sizeof(CodePage))
        )
        if page != cython.NULL:
            for i in range(16):
                page.homes[i][0] = page.homes[i][1] = 0
            page.first = cython.NULL
            page.second = cython.NULL
            page.granules = 0
            page.assumed = 0
            page.claimed = 0
            page.harmless = 0
            page.drops = 0
            page.number = number
            page.before = c.newest
            c.newest = page
            c.pages[number] = page
    return c.pages[number]


def granules(start, size):
    """The 64-byte pieces that ``[start, start + size)`` of a page touches, as bits."""
    first: uint32_t = start >> 6
    last: uint32_t = (start + size - 1) >> 6
    if last > 63:
        last = 63
    return (cython.cast(uint64_t, -1) >> (63 - (last - first))) << first


def claim_page(e, s, gpa):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    page: cython.pointer(CodePage) = page_of(c, gpa)
    if page == cython.NULL:
        return -1
    if page.claimed != CLAIMED:
        page.claimed = CLAIMING
        tlb_protect(e, gpa)
        # A store whose block has looked up the page some time ago may still be on its way.
        if e.cpu_count > 1 and not wait_for_borders(e, s):
            return 1
        page.claimed = CLAIMED
    return 0


def claim_pages(e, s, gpa, gpa2):
    found: cython.int = claim_page(e, s, gpa)
    if found != 0 or gpa2 == NO_PAGE:
        return found
    return claim_page(e, s, gpa2)


def block_insert(e, block):
    """Make a block findable. 0, or -1 if there is no room."""
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    page: cython.pointer(CodePage) = page_of(c, block.gpa)
    page2: cython.pointer(CodePage) = cython.NULL
    h: uint32_t = hash_of(block.gpa, block.mode)
    offset: uint32_t = block.gpa & 0xFFF
    if page == cython.NULL or c.index_count >= c.index_size:
        return -1
    if block.gpa2 != NO_PAGE and offset + block.size > 4096:
        page2 = page_of(c, block.gpa2)
        if page2 == cython.NULL:
            return -1
        block.page2_next = page2.second
        page2.second = block
        page2.granules |= granules(0, offset + block.size - 4096)
    block.page_next = page.first
    page.first = block
    page.granules |= granules(offset, block.size)
    block.hash_next = c.hash[h]
    block.valid = 1
    c.index[c.index_count] = block
    c.index_count += 1
    fence(ATOMIC)  # others look without the lock, and who runs the block must find it by its host code
    c.hash[h] = block
    return 0


def block_at(c, host_pc):
    """The block whose code holds ``host_pc``, or NULL."""
    low: uint32_t = 0
    high: uint32_t = c.index_count
    middle: uint32_t
    while low < high:
        middle = (low + high) >> 1
        if c.index[middle].code <= host_pc:
            low = middle + 1
        else:
            high = middle
    if low == 0 or host_pc >= c.index[low - 1].host_end:
        return cython.NULL
    return c.index[low - 1]


def map_at(block, host_pc):
    """The instruction that the host code at ``host_pc`` belongs to."""
    low: uint32_t = 0
    high: uint32_t = block.map_count
    middle: uint32_t
    offset: uint64_t = host_pc - block.code
    while low < high:
        middle = (low + high) >> 1
        if block.map[middle].host <= offset:
            low = middle + 1
        else:
            high = middle
    return cython.address(block.map[low - 1 if low else 0])


def known_slot(c, mode):
    i: uint32_t
    mode &= ~cython.cast(uint32_t, MODE_STEP | MODE_SINGLY)
    for i in range(load_uint32(cython.address(c.mode_count), ATOMIC)):
        if c.modes[i] == mode:
            return i
    return -1


def mode_slot(e, mode):
    """The slot of the jump caches that stands for ``mode``, or -1 if they are used up. The code lock is held."""
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    i: cython.int = known_slot(c, mode)
    if i >= 0:
        return i
    mode &= ~cython.cast(uint32_t, MODE_STEP | MODE_SINGLY)
    if c.mode_count == MODE_SLOTS:
        return -1
    c.modes[c.mode_count] = mode
    fence(ATOMIC)  # others look without the lock
    c.mode_count += 1
    return c.mode_count - 1


def has_code(e, gpa):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    number: uint64_t = gpa >> 12
    page: cython.pointer(CodePage)
    if c == cython.NULL or number >= c.page_count:
        return False
    page = cython.cast(cython.pointer(CodePage), load_pointer(cython.address(c.pages[number]), ATOMIC))
    return page != cython.NULL and page.claimed != 0


def patch_rel32(c, site, target):
    """Let the jump whose offset lies at executable address ``site`` lead to ``target``. Others may be running it."""
    store_int32(cython.cast(cython.pointer(int32_t), c.rw + (site - c.rx)), cython.cast(int32_t, target - (site + 4)), ATOMIC)


def link_to(c, link, block):
    """Let a jump inside a page lead straight to ``block`` from now on."""
    link.next = block.links
    block.links = link
    patch_rel32(c, link.site, block.check if link.checked else block.chained)


def retire(c, b):
    """Take a block out of the hash and lead whoever still jumps to it back to the lookup."""
    h: uint32_t = hash_of(b.gpa, b.mode)
    at: cython.pointer(cython.pointer(Block)) = cython.address(c.hash[h])
    link: cython.pointer(Link) = b.links
    b.valid = 0
    while at[0] != cython.NULL:
        if at[0] == b:
            at[0] = b.hash_next
            break
        at = cython.address(at[0].hash_next)
    while link != cython.NULL:
        patch_rel32(c, link.site, link.cold)
        link = link.next
    b.links = cython.NULL
    if b.mode & MODE_STEP == 0:
        divert(c, b.check, b.cold_exit)


def divert(c, where, to):
    """Write a jump to ``to`` over the instruction at executable address ``where``. Others may be running it."""
    quad: cython.pointer(uint64_t) = cython.cast(
        cython.pointer(uint64_t), c.rw + ((where - c.rx) & ~cython.cast(uint64_t, 7))
    )
    shift: uint32_t = (where & 7) * 8
    offset: uint32_t = cython.cast(uint32_t, to - (where + 5))
    jump: uint64_t = 0xE9 | (cython.cast(uint64_t, offset) << 8)
    mask: uint64_t = (cython.cast(uint64_t, 1) << 40) - 1
    store_uint64(quad, (quad[0] & ~(mask << shift)) | (jump << shift), ATOMIC)


def code_written(e, s, gpa, size):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    page: cython.pointer(CodePage)
    link: cython.pointer(cython.pointer(Block))
    b: cython.pointer(Block)
    running: cython.pointer(Block) = cython.NULL
    hit: cython.bint = False
    offset: uint32_t = gpa & 0xFFF
    start: uint32_t
    live: uint64_t = 0
    if c == cython.NULL or size == 0 or gpa >> 12 >= c.page_count:
        return False
    lock_code(e, s)
    page = c.pages[gpa >> 12]
    if page == cython.NULL or ((page.granules | page.assumed) & granules(offset, size)) == 0:
        if page != cython.NULL:
            count_harmless(c, page)
        unlock_code(e)
        return False
    if s != cython.NULL and s.host_pc:
        running = block_at(c, s.host_pc - 1)
        if running != cython.NULL and running.mode & MODE_STEP:
            running = cython.NULL
    link = cython.address(page.first)
    b = page.first
    while b != cython.NULL:
        start = b.gpa & 0xFFF
        if b.valid and start < offset + size and offset < start + b.size:
            break
        b = b.page_next
    overlaps: cython.bint = b != cython.NULL
    changed: cython.bint = overlaps or page.assumed & granules(offset, size) != 0
    if changed:
        page.assumed = 0  # with the blocks that rely on it
    while link[0] != cython.NULL:
        b = link[0]
        start = b.gpa & 0xFFF
        if b.valid and ((start < offset + size and offset < start + b.size) or (changed and b.assumes)):
            if b == running:
                hit = True
            retire(c, b)
            c.invalidated += 1
        if b.valid == 0:
            link[0] = b.page_next
            continue
        live |= granules(start, b.size if start + b.size <= 4096 else 4096 - start)
        link = cython.address(b.page_next)
    link = cython.address(page.second)
    while link[0] != cython.NULL:
        b = link[0]
        start = (b.gpa & 0xFFF) + b.size - 4096
        if b.valid and offset < start:
            if b == running:
                hit = True
            retire(c, b)
        if b.valid == 0:
            link[0] = b.page2_next
            continue
        live |= granules(0, start)
        link = cython.address(b.page2_next)
    page.granules = live
    if page.first == cython.NULL and page.second == cython.NULL:
        page.claimed = 0
        page.assumed = 0
    elif not overlaps:
        count_harmless(c, page)
    unlock_code(e)
    return hit


def count_harmless(c, page):
    """A write beside the code of a page. After many of them the page is taken for data, and its code is dropped.

    Memory that once held code and holds data now would be slow to write for ever otherwise. Where code and data really
    share a page, the code comes back; so each time it takes twice as many writes.
    """
    page.harmless += 1
    if page.harmless < cython.cast(uint32_t, HARMLESS_WRITES) << page.drops:
        return
    page.harmless = 0
    if page.drops < MAX_DROPS:
        page.drops += 1
    while page.first != cython.NULL:
        if page.first.valid:
            retire(c, page.first)
        page.first = page.first.page_next
    while page.second != cython.NULL:
        if page.second.valid:
            retire(c, page.second)
        page.second = page.second.page2_next
    page.granules = 0
    page.assumed = 0
    page.claimed = 0


def code_changed(e, gpa, size):
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    end: uint64_t = gpa + size
    piece: uint64_t
    there: cython.bint
    if c == cython.NULL:
        return
    fence(ATOMIC)  # what was written must be seen by whoever claims the page later
    while gpa < end:
        piece = 4096 - (gpa & 0xFFF)
        if piece > end - gpa:
            piece = end - gpa
        lock_code(e, cython.NULL)  # the table may be replaced by a larger one
        there = has_code(e, gpa)
        unlock_code(e)
        if there:
            code_written(e, cython.NULL, gpa, cython.cast(uint32_t, piece))
        gpa += piece


def page_covers(page, offsets):
    """Is there a block with code at one of ``offsets`` of this page, or one that relies on code there?"""
    b: cython.pointer(Block) = page.first
    at: uint32_t
    end: uint32_t
    i: uint32_t
    for i in range(64):
        if offsets[i] and page.assumed >> i & 1:
            return True
    while b != cython.NULL:
        at = b.gpa & 0xFFF
        end = at + b.size if at + b.size < 4096 else 4096
        while b.valid and at < end:
            if (offsets[at >> 6] >> (at & 63)) & 1:
                return True
            at += 1
        b = b.page_next
    return False


def offsets_changed(e, s, offsets):
    """Drop the code of every page that has some at ``offsets``: what is looked for there is another thing now.

    Whole pages, for what is linked inside a page then comes by the lookup once and not for ever.
    """
    c: cython.pointer(CodeCache) = cython.cast(cython.pointer(CodeCache), e.code)
    number: uint64_t
    covers: cython.bint
    if c == cython.NULL:
        return
    for number in range(c.page_count):
        if c.pages[number] == cython.NULL:
            continue
        lock_code(e, s)
        covers = c.pages[number] != cython.NULL and page_covers(c.pages[number], offsets)
        unlock_code(e)
        if covers:
            code_written(e, s, number << 12, 4096)
