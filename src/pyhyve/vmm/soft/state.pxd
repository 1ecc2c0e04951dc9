# The engine's C structs: one CpuState a vCPU, one Engine a virtual machine. Emitted code reaches CpuState through the
# host's GS base. Field meanings follow the Intel SDM; see docs/engine.md for how the parts share them.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    # GCC builtins; no header needed.
    uint32_t __atomic_fetch_or(uint32_t *where, uint32_t value, int order) noexcept nogil
    uint32_t __atomic_fetch_and(uint32_t *where, uint32_t value, int order) noexcept nogil
    uint32_t __atomic_exchange_n(uint32_t *where, uint32_t value, int order) noexcept nogil
    uint32_t __atomic_load_n(uint32_t *where, int order) noexcept nogil
    bint __atomic_compare_exchange_n(uint64_t *where, uint64_t *expected, uint64_t value, bint weak,
                                     int success, int failure) noexcept nogil


cdef enum:
    ATOMIC = 5  # __ATOMIC_SEQ_CST

    # General registers in encoding order.
    RAX = 0
    RCX = 1
    RDX = 2
    RBX = 3
    RSP = 4
    RBP = 5
    RSI = 6
    RDI = 7

    # Segment registers in encoding order.
    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5

    # Segment access rights: bits 40-55 of the descriptor (SDM Vol. 3C 24.4.1).
    SEG_TYPE = 0xF
    SEG_ACCESSED = 1
    SEG_WRITABLE = 2      # data; for code: readable
    SEG_EXPAND_DOWN = 4   # data; for code: conforming
    SEG_CODE = 8
    SEG_S = 0x10
    SEG_DPL_SHIFT = 5
    SEG_PRESENT = 0x80
    SEG_L = 0x2000
    SEG_DB = 0x4000
    SEG_G = 0x8000
    SEG_UNUSABLE = 0x10000

    # RFLAGS.
    FLAG_CF = 1
    FLAG_PF = 4
    FLAG_AF = 0x10
    FLAG_ZF = 0x40
    FLAG_SF = 0x80
    FLAG_TF = 0x100
    FLAG_IF = 0x200
    FLAG_DF = 0x400
    FLAG_OF = 0x800
    FLAG_IOPL = 0x3000
    FLAG_NT = 0x4000
    FLAG_RF = 0x10000
    FLAG_VM = 0x20000
    FLAG_AC = 0x40000
    FLAG_VIF = 0x80000
    FLAG_VIP = 0x100000
    FLAG_ID = 0x200000
    FLAGS_ARITH = 0x8D5
    FLAGS_SYSTEM = 0x3F7100  # what lives in CpuState.flags_system: not arithmetic, not IF, not DF

    CR0_PE = 1
    CR0_MP = 2
    CR0_EM = 4
    CR0_TS = 8
    CR0_ET = 0x10
    CR0_NE = 0x20
    CR0_WP = 0x10000
    CR0_AM = 0x40000
    CR0_NW = 0x20000000
    CR0_CD = 0x40000000
    CR0_PG = 0x80000000

    CR4_VME = 1
    CR4_PVI = 2
    CR4_TSD = 4
    CR4_DE = 8
    CR4_PSE = 0x10
    CR4_PAE = 0x20
    CR4_MCE = 0x40
    CR4_PGE = 0x80
    CR4_PCE = 0x100
    CR4_OSFXSR = 0x200
    CR4_OSXMMEXCPT = 0x400
    CR4_UMIP = 0x800
    CR4_LA57 = 0x1000
    CR4_FSGSBASE = 0x10000
    CR4_PCIDE = 0x20000
    CR4_OSXSAVE = 0x40000
    CR4_SMEP = 0x100000
    CR4_SMAP = 0x200000
    CR4_PKE = 0x400000

    EFER_SCE = 1
    EFER_LME = 0x100
    EFER_LMA = 0x400
    EFER_NXE = 0x800
    EFER_FFXSR = 0x4000
    EFER_AIBRSE = 0x200000

    # Exception vectors.
    EXC_DE = 0
    EXC_DB = 1
    EXC_NMI = 2
    EXC_BP = 3
    EXC_OF = 4
    EXC_BR = 5
    EXC_UD = 6
    EXC_NM = 7
    EXC_DF = 8
    EXC_TS = 10
    EXC_NP = 11
    EXC_SS = 12
    EXC_GP = 13
    EXC_PF = 14
    EXC_MF = 16
    EXC_AC = 17
    EXC_MC = 18
    EXC_XM = 19

    # What a helper or a memory access returns.
    DONE = 0     # completed; a helper has advanced rip itself
    FAULT = 1    # an exception is recorded in s.exc_*; rip still at the instruction
    LEAVE = 2    # s.exit is filled: run() returns to Python. rip is what it must be when run() is called again

    # Kinds of memory access, and the page-fault error code bits.
    ACCESS_READ = 0
    ACCESS_WRITE = 1
    ACCESS_EXEC = 2
    PF_PRESENT = 1
    PF_WRITE = 2
    PF_USER = 4
    PF_RESERVED = 8
    PF_FETCH = 16

    # With whose rights an access is made; also the index of the TLB it may fill.
    MMU_KERNEL = 0     # supervisor, SMAP in force (also: implicit accesses to tables and stacks)
    MMU_USER = 1
    MMU_KERNEL_AC = 2  # supervisor with RFLAGS.AC set: user pages may be touched
    MMU_MODES = 3

    TLB_BITS = 10
    TLB_SIZE = 1024
    TLB_MARKS = 128        # one a group of eight entries
    STLB_BITS = 14
    STLB_SIZE = 16384
    STLB_KEYS = 0xFFFF
    NO_KEY = 1             # nothing is filed under it, nor under 0
    WALKS = 256
    JUMP_SETS = 4096
    JUMP_SHIFT = 4
    JUMP_FILLS = 512
    MODE_SLOTS = 8
    CODE_PAGES = 128
    CROSSINGS = 65536

    # CpuState.mode: everything that the meaning of a code byte depends on (see system.update_mode).
    MODE_CODE64 = 1
    MODE_CODE32 = 2      # neither: 16-bit code
    MODE_USER = 4        # CPL 3
    MODE_FLAT = 8        # CS, DS, ES, SS have base 0 and limit 4 GiB (always set with CODE64)
    MODE_STACK32 = 0x10  # SS.B, where not CODE64
    MODE_PROTECTED = 0x20  # CR0.PE and not RFLAGS.VM
    MODE_TS = 0x40
    MODE_EM = 0x80
    MODE_MP = 0x100
    MODE_SSE = 0x200     # CR4.OSFXSR
    MODE_AVX = 0x400     # CR4.OSXSAVE and XCR0 has SSE and AVX
    MODE_AVX512 = 0x800
    MODE_AC = 0x1000     # CPL < 3 and RFLAGS.AC and SMAP: data accesses use MMU_KERNEL_AC
    MODE_TSC = 0x2000    # RDTSC may run natively (no TSC offset, CR4.TSD clear or CPL 0)
    MODE_VM86 = 0x4000
    MODE_LMA = 0x8000
    MODE_FSGSBASE = 0x10000
    MODE_IOPL_OK = 0x20000  # CPL <= IOPL: CLI and STI allowed
    MODE_CPL0 = 0x40000
    MODE_STEP = 0x80000  # blocks of one instruction (single step, replay); set by the engine only
    MODE_CS_PAGES = 0x100000  # not 64-bit: a page with code lies in CS as a whole; jumps inside it need no limit check
    MODE_FS_OPEN = 0x200000   # not 64-bit, CPL < 3: FS is writable data up to 4 GiB, from any base
    MODE_GS_OPEN = 0x400000   # not 64-bit, CPL 3: GS is
    MODE_ALIGN = 0x800000     # CPL 3, CR0.AM, RFLAGS.AC: alignment is checked
    MODE_SINGLY = 0x1000000   # blocks in which each access has a look-up of its own (spans.py); set by the engine only

    # CpuState.pending: asynchronous events, set atomically by any thread, looked at by emitted code.
    PENDING_KICK = 1
    PENDING_INTERRUPT = 2   # a local APIC's IRR gained a bit, or a priority changed
    PENDING_NMI = 4
    PENDING_TIMER = 8       # the local APIC's timer ran out
    PENDING_BORDER = 16     # another thread waits for this vCPU to come to a block border
    PENDING_EXTINT = 32     # the PIC's INTR line changed
    PENDING_INIT = 64
    PENDING_DRAIN = 256     # device writes or EOIs are queued for Python

    # CpuState.exit.kind
    EXIT_NONE = 0
    EXIT_IN = 1
    EXIT_OUT = 2
    EXIT_RDMSR = 3
    EXIT_WRMSR = 4
    EXIT_MMIO_READ = 5
    EXIT_MMIO_WRITE = 6
    EXIT_HLT = 7
    EXIT_PAUSE = 8
    EXIT_STEP = 9
    EXIT_SIPI = 10
    EXIT_SPINDOWN = 11
    EXIT_TRIPLE_FAULT = 12
    EXIT_KICKED = 13
    EXIT_INTACK = 14
    EXIT_EOI = 15
    EXIT_FAILED = 16
    EXIT_DEBUG = 17
    EXIT_HALTED = 18         # every vCPU has halted with interrupts off

    LOW32 = 0xFFFFFFFF  # literals beyond 31 bits are Python objects to Cython; names are not
    PAGE_MASK = 0xFFFFFFFFFFFFF000

    # CpuState.inhibit: which instruction casts the shadow
    SHADOW_STI = 1
    SHADOW_SS = 2           # MOV SS, POP SS: debug exceptions wait too

    # CpuState.watch_hits: bits 0-3 are the guest's DR0-DR3
    HIT_REGISTERS = 15
    HIT_DEBUGGER = 0x10

    MAX_POINTS = 1024       # the debugger's breakpoints on one vCPU
    MAX_WATCHES = 64        # its watchpoints
    WATCH_SLOTS = 68        # and the guest's four debug registers
    MAX_ARMED = 16448       # those of 16 vCPUs, and their debug registers

    BOUNCE_SIZE = 4224
    SITES = 16
    NOWHERE = 0x8000000000000000     # the negative of itself, and no address
    MMIO_LOG = 96            # a masked vector has at most 32 parts, and some writes may wait already


cdef struct Segment:
    uint64_t base
    uint32_t limit       # bytes, scaled by G
    uint32_t access      # SEG_*
    uint16_t selector


cdef struct TlbEntry:
    # A tag is the page's linear address. An empty tag of entry i is (i ^ TLB_SIZE/2) << 12: no address that
    # indexes entry i lies on or beside that page.
    uint64_t read_tag
    uint64_t write_tag
    uint64_t addend      # host address minus linear address
    uint64_t info        # guest-physical page | TLB_GLOBAL


cdef enum:
    TLB_GLOBAL = 1


cdef struct StlbEntry:
    # Of the second TLB. It counts while `key` is the key of its half of the addresses
    uint64_t page        # linear address
    uint64_t addend
    uint64_t info        # as in TlbEntry
    uint32_t key
    uint32_t write_key   # the same where the page has a write tag; else 0


cdef struct WalkEntry:
    # What the upper levels of a page walk came to, for the 2 MiB around a linear address
    uint64_t key         # CpuState.walk_key of then
    uint64_t region      # linear address >> 21
    uint64_t table       # host address of the page table; 0 where a larger page is mapped
    uint64_t entry       # then: its entry, with the address of these 2 MiB
    uint64_t reserved    # which bits of an entry must be 0
    uint64_t rights      # the AND of the entries above the page table
    uint32_t nx          # execute-disable in one of them
    uint32_t size        # PAGE_LARGE, PAGE_HUGE or 0 (mmu.pxd)


cdef struct Site:
    # What a look-up of a loop found last (sites.py)
    uint64_t minus_page  # the page's linear address, negated; NOWHERE if it has found none
    uint64_t host        # host address of the page
    uint64_t addend      # host address minus linear address
    uint64_t unused


cdef struct PageEntry:
    # Where the code of a linear page lies
    uint64_t tag         # the page's linear address; all ones where empty
    uint64_t info        # guest-physical page | TLB_GLOBAL


cdef struct MmioAccess:
    uint64_t gpa
    uint64_t value
    uint32_t size


cdef struct ExitRecord:
    uint32_t kind        # EXIT_*
    uint32_t size
    uint64_t address     # port, MSR index, guest-physical address, vector, vCPU
    uint64_t value


cdef struct MemoryRegion:
    uint64_t gpa
    uint64_t size
    uint64_t host        # host address of its first byte
    uint32_t readonly


cdef struct ClockPort:
    # A port that reads as a counter (vmm.api.ClockPort)
    uint32_t port            # 0: not in use
    uint32_t size            # bytes of a read that is answered
    uint64_t start           # TSC at which it was `base`
    uint64_t first           # TSC of the first read, while the count waits for the guest's loop; 0: it does not
    uint64_t hz
    uint64_t base
    uint64_t mask
    uint32_t down
    uint32_t halves
    uint32_t high_next
    uint32_t reads


cdef struct CpuidRow:
    uint32_t leaf, subleaf, any_subleaf, eax, ebx, ecx, edx


cdef struct Watch:
    uint64_t gva
    uint32_t size
    uint8_t kinds            # debug.WATCH_*
    uint8_t hit              # bit of CpuState.watch_hits


cdef struct CpuState:
    uint8_t xsave[4096]              # guest vector and x87 state while it is not in the host's registers (64-aligned)
    uint8_t bounce[4224]             # BOUNCE_SIZE: accesses that cross pages or touch devices (64-aligned)
    TlbEntry tlb[3][1024]            # [MMU_MODES][TLB_SIZE] (64-aligned, like the following: nothing lies in two lines)
    StlbEntry stlb[3][16384]         # [MMU_MODES][STLB_SIZE]
    WalkEntry walks[256]             # WALKS
    # The jump caches, [MODE_SLOTS][newer, older][JUMP_SETS]: ~rip, 0 where empty, and host code
    uint64_t jump_not_rip[8][2][4096]
    uint64_t jump_code[8][2][4096]

    uint64_t gpr[16]
    uint64_t rip
    uint64_t page_va                 # linear address of the code page that runs (CS base included)
    uint64_t flags_arith             # only the bits of FLAGS_ARITH count
    uint64_t flags_system            # FLAGS_SYSTEM bits
    uint8_t iff                      # RFLAGS.IF, 0 or 1
    uint8_t df                       # RFLAGS.DF, 0 or 1
    uint8_t cpl
    uint8_t inhibit                  # STI or MOV SS shadow: no interrupt before the next instruction is done
    uint8_t nmi_blocked
    uint8_t halted
    uint8_t sleeping                 # waiting on the futex of `pending`
    uint8_t mmu_mode                 # MMU_* of data accesses now
    uint32_t pending                 # PENDING_*: written atomically by any thread
    uint32_t events                  # PENDING_* that this vCPU has seen and not yet settled (own thread only)
    uint32_t mode                    # MODE_*
    uint32_t mode_slot               # which of MODE_SLOTS the mode has

    # Between threads (threads.py)
    uint32_t running                 # may be inside translated code or a helper
    uint32_t border                  # block borders passed
    uint32_t lock_wait               # waits for the code lock: 1 at a block border, 2 in a slow path
    uint32_t in_block                # a slow path of emitted code runs: what its block has looked up may still be used
    uint32_t down                    # not to run before a start-up IPI
    uint32_t dead                    # halted with interrupts off
    uint32_t pauses                  # PAUSE instructions executed
    uint32_t alone                   # has the world stopped for the next instruction
    uint32_t sipi_targets            # vCPUs that this one has started and Python has not heard of yet
    uint32_t open_size               # a helper writes this many bytes at open_gpa, which may be code
    uint64_t open_gpa

    # Leaving emitted code
    uint64_t exit_target             # linear rip to go on at, or the page offset of an unresolved chain
    uint64_t exit_link               # Link * of an unresolved chain
    uint64_t exit_insn               # Insn * of a helper exit
    uint64_t host_sp                 # the thread's own stack
    uint64_t stack_memory            # the one of emitted code (stack.py), its bottom frame, and where it was in a slow path
    uint64_t stack_base
    uint64_t stack_at
    uint64_t host_pc                 # return address in emitted code of the slow path that runs; 0 outside
    uint32_t slow_status             # what the slow path came to: DONE, FAULT, LEAVE, CODE_WRITE
    uint32_t fault_signal            # a synchronous host signal in emitted code, the exception behind it, its place
    uint32_t fault_trap
    uint64_t fault_pc
    uint32_t slot_mode               # the mode that mode_slot was found for
    uint32_t trap_after              # TF was set when an instruction left to Python: #DB comes when it is done
    uint32_t step_once               # run one instruction in a block of its own next
    uint32_t intack_wait             # an EXIT_INTACK is out
    ExitRecord held                  # an exit that waits until queued device writes have been told
    uint64_t scratch[4]
    Site sites[2][16]                # [store][SITES]
    uint8_t sites_filled[2][16]      # which of them have found a page since emitted code was entered
    uint8_t sites_used               # has any?
    uint64_t span[32]                # what finds the memory of each span of the block that runs (spans.py)
    uint64_t kept[3]                 # registers, while the TLBs are looked at
    uint64_t mask_index              # constants for PEXT
    uint64_t mask_high
    uint64_t mask_half
    uint64_t mask_jump
    uint64_t mask_stlb               # and for PDEP
    uint64_t mask_bits[4]            # 7, 15, 31, 63

    Segment segments[6]
    Segment ldtr
    Segment tr
    uint64_t gdt_base
    uint32_t gdt_limit
    uint32_t idt_limit
    uint64_t idt_base
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0
    uint64_t dr[8]

    # Model-specific registers
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip
    uint64_t pat, apic_base, misc_enable, mtrr_def_type, tsc_offset, tsc_adjust
    uint64_t mtrr_fixed[11]
    uint64_t mtrr_var[16]
    uint64_t mcg_status
    uint64_t pv_time, pv_wall        # KVM's clock: where the guest wants it

    # An exception on its way to delivery
    uint8_t exc_pending
    uint8_t exc_vector
    uint8_t exc_has_error
    uint8_t exc_soft                 # INT n, INT3, INTO: the saved rip is the next instruction's
    uint32_t exc_error
    uint64_t exc_next_rip            # where exc_soft
    uint64_t exc_cr2

    # Conversation with Python
    ExitRecord exit
    uint8_t answered                 # answer holds what the last exit wanted
    uint8_t hlt_exit, pause_exit, step_exit
    uint64_t answer
    uint32_t intr_line               # the PIC's INTR level
    uint32_t sipi_vector
    uint32_t eoi_count
    uint8_t eoi_vectors[64]          # level-triggered vectors whose EOI Python must hear of
    uint32_t mmio_reads              # replay log of the instruction that runs
    uint32_t mmio_cursor
    uint32_t replay                  # the instruction at rip is being run again with answers
    MmioAccess mmio_read[96]         # MMIO_LOG
    uint32_t mmio_writes             # device writes done and not yet told
    uint32_t mmio_write_cursor
    MmioAccess mmio_write[96]
    # A store that runs in the bounce buffer
    uint32_t bounce_active
    uint32_t bounce_size
    uint64_t bounce_gva
    uint64_t bounce_host[2]          # where its two parts go; 0: a device
    uint64_t bounce_gpa[2]
    uint32_t bounce_first            # bytes of the first part
    uint64_t bounce_mask             # of a masked store: which bytes are written; 0: all

    # Counters
    uint64_t count_enter, count_lookup, count_chain, count_helper, count_tlb_miss, count_tlb_flush
    uint64_t count_blocks, count_block_bytes, count_insns, count_exits, count_exceptions, count_interrupts
    uint64_t count_code_flush, tsc_translate, tsc_run

    uint32_t index
    Engine *engine
    void *lapic
    uint64_t self                    # address of this struct
    uint32_t stlb_key[2]             # of the lower and the upper half of the addresses; others may set them to NO_KEY
    uint32_t stlb_last               # the key that was given last
    uint32_t stlb_local              # the upper half has entries that are not global
    uint64_t walk_key
    uint8_t tlb_dirty[3]             # a TLB has entries
    uint8_t jump_dirty[8]            # a jump cache has entries
    uint32_t jump_fills[8]           # how many of jump_filled count; JUMP_FILLS + 1: too many
    uint16_t jump_filled[8][512]     # the sets with entries
    uint8_t jump_local[8]            # a jump cache has entries of pages that are not global
    uint8_t page_dirty[2]            # `code_page` has entries
    uint32_t home_epoch[2]           # [of user code]: CodePage.homes of other epochs do not count
    # Crossings: where each direct jump to another page leads, and by mode slot which of them (as offsets in CpuState)
    # do not lead to their cold part
    uint64_t crossing[65536]         # CROSSINGS
    uint32_t crossing_fills[8]
    uint32_t crossing_filled[8][65536]
    uint32_t aliases_left[8]         # 0: crossings are not filled
    uint8_t code_local               # the block that was found last lies in a page that is not global
    PageEntry code_page[2][128]      # [of user code][CODE_PAGES]: pages that were looked for, until the jump caches go
    # Filters of the pages (by number, modulo 4096) in jump caches: the kernel's code in the upper half of the addresses
    # and in the lower half, the user's
    uint64_t jump_pages[3][64]
    uint8_t jump_user[8]             # a jump cache is for a mode of CPL 3
    # [global][upper half of the addresses]: filter of the 4 MiB and 1 GiB regions that have entries of large pages
    uint64_t tlb_large[2][2][8]
    uint64_t tlb_local[3][16]        # TLB_MARKS bytes each: a group of entries may have some that are not global

    # Breakpoints and watchpoints, the debugger's and the guest's own (debug.pxd)
    uint32_t watch_hits              # HIT_*: the instruction that ran touched watched bytes
    uint32_t steps_held              # steps for which an interrupt has waited
    uint64_t watch_hit               # which of the debugger's watchpoints
    uint64_t debugctl                # IA32_DEBUGCTL
    uint8_t stepping                 # the block that runs is a single instruction
    uint8_t passing                  # the instruction at rip runs although a point of the debugger is there
    uint8_t step_after               # a single-stepped instruction left to Python: EXIT_STEP comes when it is done
    uint32_t point_count
    uint32_t watch_own               # the debugger's watchpoints; those of debug registers follow
    uint32_t watch_count
    uint64_t points[1024]            # MAX_POINTS
    Watch watches[68]                # WATCH_SLOTS


cdef struct Engine:
    MemoryRegion regions[16]
    uint32_t region_count
    CpuState *cpus[16]
    uint32_t cpu_count
    CpuidRow cpuid[128]
    uint32_t cpuid_count
    uint64_t tsc_hz
    uint64_t tsc_start               # the TSC when the machine was made, and the time of day then, ns
    uint64_t wall_start
    uint64_t apic_hz
    uint32_t timer_wake              # futex of the timer thread
    uint32_t timer_stop
    uint64_t timer_planned           # TSC at which the timer thread wakes by itself
    void *code                       # blocks.CodeCache
    uint32_t code_lock
    uint32_t stop                    # all vCPUs must rest at their next block border
    ClockPort clock_ports[4]
    uint64_t xsave_mask              # components that run() saves and restores
    uint32_t armed_count             # breakpoints that translated code looks for (debug.pxd)
    uint64_t armed[16448]            # MAX_ARMED
    uint64_t armed_offsets[64]       # the page offsets of all of them, as bits


cdef inline uint64_t get_rflags(CpuState *s) noexcept nogil:
    """The whole RFLAGS register."""
    return ((s.flags_arith & FLAGS_ARITH) | (s.flags_system & FLAGS_SYSTEM) | 2
            | (<uint64_t>s.iff << 9) | (<uint64_t>s.df << 10))


cdef inline void set_rflags(CpuState *s, uint64_t value) noexcept nogil:
    """Replace RFLAGS whole; the caller has checked what may change, and calls update_mode afterwards."""
    s.flags_arith = value & FLAGS_ARITH
    s.flags_system = value & FLAGS_SYSTEM
    s.iff = (value >> 9) & 1
    s.df = (value >> 10) & 1


cdef inline int raise_fault(CpuState *s, uint8_t vector, bint has_error, uint32_t error) noexcept nogil:
    """Record an exception and return FAULT."""
    s.exc_pending = 1
    s.exc_vector = vector
    s.exc_has_error = has_error
    s.exc_error = error
    s.exc_soft = 0
    return FAULT


cdef inline int gp(CpuState *s, uint32_t error) noexcept nogil:
    return raise_fault(s, EXC_GP, 1, error)


cdef inline int ud(CpuState *s) noexcept nogil:
    return raise_fault(s, EXC_UD, 0, 0)


cdef inline bint is_canonical(uint64_t va) noexcept nogil:
    return <uint64_t>(<int64_t>(va << 16) >> 16) == va
