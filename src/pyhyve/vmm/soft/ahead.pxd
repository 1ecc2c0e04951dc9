# Flags that matter to code which is not translated yet.

from libc.stdint cimport int64_t, uint32_t

from pyhyve.vmm.soft.translate cimport Context

cdef enum:
    MOST_AHEAD = 24          # instructions
    MOST_BRANCHES = 2

# The arithmetic flags that may matter at page offset `target` of the page that is being translated. What they depend on
# is marked in CodePage.assumed.
cdef uint32_t live_ahead(Context *x, int64_t target) noexcept nogil

cdef uint32_t look_ahead(Context *x, int64_t at, uint32_t branches, uint32_t *left) noexcept nogil
