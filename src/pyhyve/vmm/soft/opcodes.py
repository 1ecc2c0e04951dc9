"""The opcode table of the engine, as data: one row an instruction form, in the notation of the Intel SDM Vol. 2 appendix A.

A row is ``KEY name operands... attributes...``.

KEY      ``[V]MAP.OPCODE[/REG][.m|.r][:PP]``: V for VEX encodings; MAP empty, ``0F``, ``0F38`` or ``0F3A``; a range
         ``50-57`` names several opcodes; ``/REG`` the reg field of ModRM; ``.m`` memory and ``.r`` register forms
         only; PP a mandatory prefix (np, 66, F3, F2). Later rows win over earlier ones.
operands ``E`` ModRM.rm, register or memory; ``G`` ModRM.reg; ``M`` memory only; ``R`` register only by rm; ``Z``
         register in the opcode; ``B`` register in VEX.vvvv; ``V W U`` vector and ``P Q N`` MMX registers as the
         SDM has them; ``H`` a vector or opmask register in VEX.vvvv, which must be 1111b where there is neither ``B``
         nor ``H``; ``L`` one in the upper half of an immediate byte; ``K`` an opmask register, with a size the memory in its place; ``I`` immediate; ``J`` relative
         jump; ``O`` memory offset. Then the size: b w d q, v (operand size), z (operand size, at most 4), y (4, or 8
         with REX.W), x (16, 32 with VEX.L), h f e (half, quarter, eighth of x), o (16), kw kb (2 and 1, with VEX.W 8
         and 4), or a number of bytes. ``Ed1`` is a 32-bit register or 1 byte of memory. ``!`` behind
         it: only written; ``+``: read and written; ``-``: not accessed.
flags    ``<c`` reads CF, ``>oszapc`` overwrites these flags whatever they were before.
others   ``%kind`` a form that the translator treats by itself; ``@name`` a helper executes it; ``i64`` not in 64-bit
         mode, ``o64`` only there; ``d64`` 64-bit operand size by default there, ``f64`` always; ``lk`` LOCK allowed;
         ``fpu`` ``mmx`` ``sse`` ``avx`` ``wait`` the state it needs (set from the operands where they tell).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from pyhyve.vmm.soft import opcodes_evex

FLAG_BITS = {"c": 0x1, "p": 0x4, "a": 0x10, "z": 0x40, "s": 0x80, "o": 0x800}
ALL = ">oszapc"
CONDITIONS = ("<o", "<o", "<c", "<c", "<z", "<z", "<cz", "<cz", "<s", "<s", "<p", "<p", "<so", "<so", "<zso", "<zso")
CC = "o no b ae e ne be a s ns p np l ge le g".split()

INTEGER = """
06 push_es i64 @push_sreg
07 pop_es i64 @pop_sreg
0E push_cs i64 @push_sreg
16 push_ss i64 @push_sreg
17 pop_ss i64 @pop_sreg
1E push_ds i64 @push_sreg
1F pop_ds i64 @pop_sreg
27 daa i64 @daa
2F das i64 @das
37 aaa i64 @aaa
3F aas i64 @aas
40-47 inc Zv+ i64 %incdec >oszap
48-4F dec Zv+ i64 %incdec >oszap
50-57 push Zv d64 %push
58-5F pop Zv! d64 %pop
60 pusha i64 @pusha
61 popa i64 @popa
62 bound Gv Mv- i64 @bound
63 movsxd Gv! Ed
68 push Iz d64 %push_imm
69 imul Gv! Ev Iz >oc
6A push Ib d64 %push_imm
6B imul Gv! Ev Ib >oc
6C-6D ins @ins
6E-6F outs @outs
84 test Eb Gb >oszapc
85 test Ev Gv >oszapc
86 xchg Eb+ Gb+ lk
87 xchg Ev+ Gv+ lk
88 mov Eb! Gb
89 mov Ev! Gv
8A mov Gb! Eb
8B mov Gv! Ev
8C mov_from_sreg Ew- Gb- @mov_from_sreg
8D.m lea Gv! M- %lea
8E mov_to_sreg Ew- Gb- @mov_to_sreg
8F/0 pop Ev! d64 %pop_mem
90-97 xchg Zv+ eAX %xchg_a
90:F3 pause @pause
98 cbw
99 cwd
9A call_far Ap i64 @call_far_imm
9B fwait fpu wait
9C pushf d64 @pushf
9D popf d64 @popf
9E sahf >szapc
9F lahf <szapc
A0 mov AL Ob %moffs
A1 mov eAX Ov %moffs
A2 mov Ob! AL %moffs
A3 mov Ov! eAX %moffs
A4-A5 movs %movs
A6-A7 cmps @cmps
A8 test AL Ib >oszapc
A9 test eAX Iz >oszapc
AA-AB stos %stos
AC-AD lods @lods
AE-AF scas @scas
B0-B7 mov Zb! Ib
B8-BF mov Zv! Iv
C2 ret Iw f64 %ret
C3 ret f64 %ret
C4.m les Gv- M- i64 @load_far
C5.m lds Gv- M- i64 @load_far
C6/0 mov Eb! Ib
C7/0 mov Ev! Iz
C8 enter Iw d64 @enter
C9 leave d64 %leave
CA retf Iw @retf
CB retf @retf
CC int3 @int3
CD int Ib @int_n
CE into i64 @into
CF iret @iret
D4 aam Ib i64 @aam
D5 aad Ib i64 @aad
D6 salc i64 @salc
D7 xlat %xlat
E0-E1 loopz Jb f64 %loop <z
E2 loop Jb f64 %loop
E3 jcxz Jb f64 %jcxz
E4 in Ib @in_imm
E5 in Ib @in_imm
E6 out Ib @out_imm
E7 out Ib @out_imm
E8 call Jz f64 %call
E9 jmp Jz f64 %jmp
EA jmp_far Ap i64 @jmp_far_imm
EB jmp Jb f64 %jmp
EC-ED in @in_dx
EE-EF out @out_dx
F1 int1 @int1
F4 hlt @hlt
F5 cmc <c >c
F6/0 test Eb Ib >oszapc
F6/1 test Eb Ib >oszapc
F6/2 not Eb+ lk
F6/3 neg Eb+ lk >oszapc
F6/4 mul Eb >oc
F6/5 imul Eb >oc
F6/6 div Eb
F6/7 idiv Eb
F7/0 test Ev Iz >oszapc
F7/1 test Ev Iz >oszapc
F7/2 not Ev+ lk
F7/3 neg Ev+ lk >oszapc
F7/4 mul Ev >oc
F7/5 imul Ev >oc
F7/6 div Ev
F7/7 idiv Ev
F8 clc >c
F9 stc >c
FA cli %cli
FB sti %sti
FC cld %cld
FD std %std
FE/0 inc Eb+ lk >oszap
FE/1 dec Eb+ lk >oszap
FF/0 inc Ev+ lk >oszap
FF/1 dec Ev+ lk >oszap
FF/2 call Ev f64 %call_ind
FF/3.m call_far M- @call_far_mem
FF/4 jmp Ev f64 %jmp_ind
FF/5.m jmp_far M- @jmp_far_mem
FF/6 push Ev d64 %push_mem
0F.00/0 sldt Ew- @sldt
0F.00/1 str Ew- @str
0F.00/2 lldt Ew- @lldt
0F.00/3 ltr Ew- @ltr
0F.00/4 verr Ew- @verr
0F.00/5 verw Ew- @verw
0F.01/0.m sgdt M- @sgdt
0F.01/1.m sidt M- @sidt
0F.01/2.m lgdt M- @lgdt
0F.01/3.m lidt M- @lidt
0F.01/4 smsw Ew- @smsw
0F.01/6 lmsw Ew- @lmsw
0F.01/7.m invlpg M- @invlpg
0F.02 lar Gv- Ew- @lar
0F.03 lsl Gv- Ew- @lsl
0F.05 syscall @syscall
0F.06 clts @clts
0F.07 sysret o64 @sysret
0F.08 invd @invd
0F.09 wbinvd @wbinvd
0F.0B ud2 %ud
0F.0D.m prefetch E- %nop
0F.18-1F nop E- %nop
0F.20 mov_cr Gb- Ew- @mov_from_cr
0F.21 mov_dr Gb- Ew- @mov_from_dr
0F.22 mov_cr Gb- Ew- @mov_to_cr
0F.23 mov_dr Gb- Ew- @mov_to_dr
0F.30 wrmsr @wrmsr
0F.31 rdtsc %rdtsc
0F.32 rdmsr @rdmsr
0F.33 rdpmc @rdpmc
0F.34 sysenter @sysenter
0F.35 sysexit @sysexit
0F.A0 push_fs @push_sreg
0F.A1 pop_fs @pop_sreg
0F.A2 cpuid @cpuid
0F.A3 bt Ev Gv %bt >c
0F.A4 shld Ev+ Gv Ib
0F.A5 shld Ev+ Gv CL
0F.A8 push_gs @push_sreg
0F.A9 pop_gs @pop_sreg
0F.AB bts Ev+ Gv %bt lk >c
0F.AC shrd Ev+ Gv Ib
0F.AD shrd Ev+ Gv CL
0F.AE/0.m:np fxsave M- @fxsave
0F.AE/1.m:np fxrstor M- @fxrstor
0F.AE/2.m:np ldmxcsr Md sse
0F.AE/3.m:np stmxcsr Md! sse
0F.AE/4.m:np xsave M- @xsave
0F.AE/5.m:np xrstor M- @xrstor
0F.AE/6.m:np xsaveopt M- @xsaveopt
0F.AE/7.m:np clflush M1
0F.AE/6.m:66 clwb M1
0F.AE/7.m:66 clflushopt M1
0F.AE/5.r:np lfence
0F.AE/6.r:np mfence
0F.AE/7.r:np sfence
0F.AE/0.r:F3 rdfsbase Ry- o64 @rdfsbase
0F.AE/1.r:F3 rdgsbase Ry- o64 @rdgsbase
0F.AE/2.r:F3 wrfsbase Ry- o64 @wrfsbase
0F.AE/3.r:F3 wrgsbase Ry- o64 @wrgsbase
0F.AF imul Gv+ Ev >oc
0F.B0 cmpxchg Eb+ Gb lk >oszapc
0F.B1 cmpxchg Ev+ Gv lk >oszapc
0F.B2.m lss Gv- M- @load_far
0F.B3 btr Ev+ Gv %bt lk >c
0F.B4.m lfs Gv- M- @load_far
0F.B5.m lgs Gv- M- @load_far
0F.B6 movzx Gv! Eb
0F.B7 movzx Gv! Ew
0F.B8:F3 popcnt Gv! Ev >oszapc
0F.BA/4 bt Ev Ib >c
0F.BA/5 bts Ev+ Ib lk >c
0F.BA/6 btr Ev+ Ib lk >c
0F.BA/7 btc Ev+ Ib lk >c
0F.BB btc Ev+ Gv %bt lk >c
0F.BC bsf Gv+ Ev >z
0F.BC:F3 tzcnt Gv! Ev >zc
0F.BD bsr Gv+ Ev >z
0F.BD:F3 lzcnt Gv! Ev >zc
0F.BE movsx Gv! Eb
0F.BF movsx Gv! Ew
0F.C0 xadd Eb+ Gb+ lk >oszapc
0F.C1 xadd Ev+ Gv+ lk >oszapc
0F.C3.m:np movnti My! Gy
0F.C7/1.m cmpxchg8b Mpair+ lk >z
0F.C7/3.m:np xrstors M- @xrstors
0F.C7/4.m:np xsavec M- @xsavec
0F.C7/5.m:np xsaves M- @xsaves
0F.C7/6.r rdrand Rv! >oszapc
0F.C7/7.r rdseed Rv! >oszapc
0F.C7/7.r:F3 rdpid Ry- @rdpid
0F.C8-CF bswap Zv+
0F38.82.m:66 invpcid Gv- M- @invpcid
0F38.F0.m:np movbe Gv! Mv
0F38.F0.m:66 movbe Gv! Mv
0F38.F1.m:np movbe Mv! Gv
0F38.F1.m:66 movbe Mv! Gv
0F38.F0:F2 crc32 Gy+ Eb
0F38.F1:F2 crc32 Gy+ Ev
0F38.F6:66 adcx Gy+ Ey <c >c
0F38.F6:F3 adox Gy+ Ey <o >o
V0F38.F2:np andn Gy! By Ey >oszapc
V0F38.F3/1:np blsr By! Ey >oszapc
V0F38.F3/2:np blsmsk By! Ey >oszapc
V0F38.F3/3:np blsi By! Ey >oszapc
V0F38.F5:np bzhi Gy! Ey By >oszapc
V0F38.F5:F3 pext Gy! By Ey
V0F38.F5:F2 pdep Gy! By Ey
V0F38.F6:F2 mulx Gy! By! Ey
V0F38.F7:np bextr Gy! Ey By >oszapc
V0F38.F7:66 shlx Gy! Ey By
V0F38.F7:F3 sarx Gy! Ey By
V0F38.F7:F2 shrx Gy! Ey By
V0F3A.F0:F2 rorx Gy! Ey Ib
"""

# 0F 01 with a register form: the whole ModRM byte selects.
SYSTEM_0F01 = """
C8 monitor @monitor
C9 mwait @mwait
CA clac @clac
CB stac @stac
D0 xgetbv @xgetbv
D1 xsetbv @xsetbv
F8 swapgs o64 @swapgs
F9 rdtscp %rdtsc
"""

X87 = """
D8.m farith Md
D8.r farith
D9/0.m fld Md
D9/2.m fst Md!
D9/3.m fstp Md!
D9/4.m fldenv Menv
D9/5.m fldcw Mw
D9/6.m fnstenv M- @fnstenv
D9/7.m fnstcw Mw!
D9.r fmisc
DA.m fiarith Md
DA.r fcmov <czp
DB/0.m fild Md
DB/1.m fisttp Md!
DB/2.m fist Md!
DB/3.m fistp Md!
DB/5.m fld M10
DB/7.m fstp M10!
DB/0.r fcmov <c
DB/1.r fcmov <z
DB/2.r fcmov <cz
DB/3.r fcmov <p
DB/4.r fctl
DB/5.r fucomi >zpc
DB/6.r fcomi >zpc
DC.m farith Mq
DC.r farith
DD/0.m fld Mq
DD/1.m fisttp Mq!
DD/2.m fst Mq!
DD/3.m fstp Mq!
DD/4.m frstor Mfsave
DD/6.m fnsave M- @fnsave
DD/7.m fnstsw Mw!
DD.r fmisc
DE.m fiarith Mw
DE.r farithp
DF/0.m fild Mw
DF/1.m fisttp Mw!
DF/2.m fist Mw!
DF/3.m fistp Mw!
DF/4.m fbld M10
DF/5.m fild Mq
DF/6.m fbstp M10!
DF/7.m fistp Mq!
DF.r fmisc
DF/5.r fucomip >zpc
DF/6.r fcomip >zpc
"""

# SSE to SSE4.2, AES, SHA, GFNI. Rows with vector operands are made into VEX rows too, unless they say `legacy`.
SSE = """
0F.10:np movups Vx! Wx
0F.10:66 movupd Vx! Wx
0F.10.m:F3 movss Vx! Wd
0F.10.r:F3 movss Vx! H Wd
0F.10.m:F2 movsd Vx! Wq
0F.10.r:F2 movsd Vx! H Wq
0F.11:np movups Wx! Vx
0F.11:66 movupd Wx! Vx
0F.11.m:F3 movss Wd! Vx
0F.11.r:F3 movss Wd! H Vx
0F.11.m:F2 movsd Wq! Vx
0F.11.r:F2 movsd Wq! H Vx
0F.12:np movlps Vx H Wq
0F.12.m:66 movlpd Vx H Mq
0F.12:F3 movsldup Vx Wx
0F.12:F2 movddup Vx Wdup
0F.13.m:np movlps Mq! Vx
0F.13.m:66 movlpd Mq! Vx
0F.14:np unpcklps Vx H Wx
0F.14:66 unpcklpd Vx H Wx
0F.15:np unpckhps Vx H Wx
0F.15:66 unpckhpd Vx H Wx
0F.16:np movhps Vx H Wq
0F.16.m:66 movhpd Vx H Mq
0F.16:F3 movshdup Vx Wx
0F.17.m:np movhps Mq! Vx
0F.17.m:66 movhpd Mq! Vx
0F.28:np movaps Vx Wx
0F.28:66 movapd Vx Wx
0F.29:np movaps Wx! Vx
0F.29:66 movapd Wx! Vx
0F.2A:np cvtpi2ps Vx Qq legacy
0F.2A:66 cvtpi2pd Vx Qq legacy
0F.2A:F3 cvtsi2ss Vx H Ey
0F.2A:F2 cvtsi2sd Vx H Ey
0F.2B.m:np movntps Mx! Vx
0F.2B.m:66 movntpd Mx! Vx
0F.2C:np cvttps2pi Pq Wq legacy
0F.2C:66 cvttpd2pi Pq Wo legacy
0F.2C:F3 cvttss2si Gy! Wd
0F.2C:F2 cvttsd2si Gy! Wq
0F.2D:np cvtps2pi Pq Wq legacy
0F.2D:66 cvtpd2pi Pq Wo legacy
0F.2D:F3 cvtss2si Gy! Wd
0F.2D:F2 cvtsd2si Gy! Wq
0F.2E:np ucomiss Vx Wd >oszapc
0F.2E:66 ucomisd Vx Wq >oszapc
0F.2F:np comiss Vx Wd >oszapc
0F.2F:66 comisd Vx Wq >oszapc
0F.50.r:np movmskps Gd! Ux
0F.50.r:66 movmskpd Gd! Ux
0F.52:np rsqrtps Vx Wx
0F.52:F3 rsqrtss Vx H Wd
0F.53:np rcpps Vx Wx
0F.53:F3 rcpss Vx H Wd
0F.5A:np cvtps2pd Vx Wh
0F.5A:66 cvtpd2ps Vx Wx
0F.5A:F3 cvtss2sd Vx H Wd
0F.5A:F2 cvtsd2ss Vx H Wq
0F.5B:np cvtdq2ps Vx Wx
0F.5B:66 cvtps2dq Vx Wx
0F.5B:F3 cvttps2dq Vx Wx
0F.6C:66 punpcklqdq Vx H Wx
0F.6D:66 punpckhqdq Vx H Wx
0F.6E:np movd Pq Ey
0F.6E:66 movd Vx Ey
0F.6F:np movq Pq Qq
0F.6F:66 movdqa Vx Wx
0F.6F:F3 movdqu Vx Wx
0F.70:np pshufw Pq Qq Ib
0F.70:66 pshufd Vx Wx Ib
0F.70:F3 pshufhw Vx Wx Ib
0F.70:F2 pshuflw Vx Wx Ib
0F.77:np emms mmx
0F.7C:66 haddpd Vx H Wx
0F.7C:F2 haddps Vx H Wx
0F.7D:66 hsubpd Vx H Wx
0F.7D:F2 hsubps Vx H Wx
0F.7E:np movd Ey! Pq
0F.7E:66 movd Ey! Vx
0F.7E:F3 movq Vx Wq
0F.7F:np movq Qq! Pq
0F.7F:66 movdqa Wx! Vx
0F.7F:F3 movdqu Wx! Vx
0F.C2:np cmpps Vx H Wx Ib
0F.C2:66 cmppd Vx H Wx Ib
0F.C2:F3 cmpss Vx H Wd Ib
0F.C2:F2 cmpsd Vx H Wq Ib
0F.C4:np pinsrw Pq Ed2 Ib
0F.C4:66 pinsrw Vx H Ed2 Ib
0F.C5.r:np pextrw Gd! Nq Ib
0F.C5.r:66 pextrw Gd! Ux Ib
0F.C6:np shufps Vx H Wx Ib
0F.C6:66 shufpd Vx H Wx Ib
0F.D0:66 addsubpd Vx H Wx
0F.D0:F2 addsubps Vx H Wx
0F.D6:66 movq Wq! Vx
0F.D6.r:F3 movq2dq Vx Nq legacy
0F.D6.r:F2 movdq2q Pq Ux legacy
0F.D7.r:np pmovmskb Gd! Nq
0F.D7.r:66 pmovmskb Gd! Ux
0F.E6:66 cvttpd2dq Vx Wx
0F.E6:F3 cvtdq2pd Vx Wh
0F.E6:F2 cvtpd2dq Vx Wx
0F.E7.m:np movntq Mq! Pq
0F.E7.m:66 movntdq Mx! Vx
0F.F0.m:F2 lddqu Vx Mx
0F.F7.r:np maskmovq Pq Nq @maskmovq
0F.F7.r:66 maskmovdqu Vx Ux @maskmovdqu
0F38.10:66 pblendvb Vx Wx legacy
0F38.14:66 blendvps Vx Wx legacy
0F38.15:66 blendvpd Vx Wx legacy
0F38.17:66 ptest Vx Wx >oszapc
0F38.2A.m:66 movntdqa Vx Mx
0F38.C8-CD:np sha Vx Wo legacy
0F38.CF:66 gf2p8mulb Vx H Wx
0F38.DB:66 aesimc Vx Wx
0F38.DC-DF:66 aes Vx H Wx
0F3A.0A:66 roundss Vx H Wd Ib
0F3A.0B:66 roundsd Vx H Wq Ib
0F3A.0F:np palignr Pq Qq Ib
0F3A.14:66 pextrb Ed1! Vx Ib
0F3A.15:66 pextrw Ed2! Vx Ib
0F3A.16:66 pextrd Ey! Vx Ib
0F3A.17:66 extractps Ed! Vx Ib
0F3A.20:66 pinsrb Vx H Ed1 Ib
0F3A.21:66 insertps Vx H Wd Ib
0F3A.22:66 pinsrd Vx H Ey Ib
0F3A.CC:np sha1rnds4 Vx Wo Ib legacy
"""

VEX = """
V0F.77:np vzero avx
V0F.AE/2.m:np vldmxcsr Md avx
V0F.AE/3.m:np vstmxcsr Md! avx
V0F38.0C-0D:66 vpermil Vx H Wx
V0F38.0E-0F:66 vtest Vx Wx >oszapc
V0F38.13:66 vcvtph2ps Vx Wh
V0F38.16:66 vpermps Vx H Wx
V0F38.18:66 vbroadcastss Vx Wd
V0F38.19:66 vbroadcastsd Vx Wq
V0F38.1A.m:66 vbroadcastf128 Vx Mo
V0F38.2C.m:66 vmaskmovps Vx H M- @vmaskmov
V0F38.2D.m:66 vmaskmovpd Vx H M- @vmaskmov
V0F38.2E.m:66 vmaskmovps M- H Vx @vmaskmov
V0F38.2F.m:66 vmaskmovpd M- H Vx @vmaskmov
V0F38.36:66 vpermd Vx H Wx
V0F38.45-47:66 vpshiftv Vx H Wx
V0F38.58:66 vpbroadcastd Vx Wd
V0F38.59:66 vpbroadcastq Vx Wq
V0F38.5A.m:66 vbroadcasti128 Vx Mo
V0F38.78:66 vpbroadcastb Vx W1
V0F38.79:66 vpbroadcastw Vx W2
V0F38.8C.m:66 vpmaskmov Vx H M- @vmaskmov
V0F38.8E.m:66 vpmaskmov M- H Vx @vmaskmov
V0F38.90-93.m:66 vgather Vx H M- @vgather
V0F38.96-98:66 fma Vx H Wx
V0F38.9A:66 fma Vx H Wx
V0F38.9C:66 fma Vx H Wx
V0F38.9E:66 fma Vx H Wx
V0F38.A6-A8:66 fma Vx H Wx
V0F38.AA:66 fma Vx H Wx
V0F38.AC:66 fma Vx H Wx
V0F38.AE:66 fma Vx H Wx
V0F38.B6-B8:66 fma Vx H Wx
V0F38.BA:66 fma Vx H Wx
V0F38.BC:66 fma Vx H Wx
V0F38.BE:66 fma Vx H Wx
V0F38.99:66 fma Vx H Wy
V0F38.9B:66 fma Vx H Wy
V0F38.9D:66 fma Vx H Wy
V0F38.9F:66 fma Vx H Wy
V0F38.A9:66 fma Vx H Wy
V0F38.AB:66 fma Vx H Wy
V0F38.AD:66 fma Vx H Wy
V0F38.AF:66 fma Vx H Wy
V0F38.B9:66 fma Vx H Wy
V0F38.BB:66 fma Vx H Wy
V0F38.BD:66 fma Vx H Wy
V0F38.BF:66 fma Vx H Wy
V0F3A.00:66 vpermq Vx Wx Ib
V0F3A.01:66 vpermpd Vx Wx Ib
V0F3A.02:66 vpblendd Vx H Wx Ib
V0F3A.04:66 vpermilps Vx Wx Ib
V0F3A.05:66 vpermilpd Vx Wx Ib
V0F3A.06:66 vperm2f128 Vx H Wx Ib
V0F3A.18:66 vinsertf128 Vx H Wo Ib
V0F3A.19:66 vextractf128 Wo! Vx Ib
V0F3A.1D:66 vcvtps2ph Wh! Vx Ib
V0F3A.38:66 vinserti128 Vx H Wo Ib
V0F3A.39:66 vextracti128 Wo! Vx Ib
V0F3A.46:66 vperm2i128 Vx H Wx Ib
V0F3A.4A-4C:66 vblendv Vx H Wx L
"""

# AVX-512's opmask registers. ``K`` is one; what VEX.L and VEX.W say is the host's to know.
OPMASK = """
V0F.41-42.r:np kand K H
V0F.41-42.r:66 kand K H
V0F.44.r:np knot K
V0F.44.r:66 knot K
V0F.45-47.r:np kor K H
V0F.45-47.r:66 kor K H
V0F.4A-4B.r:np kadd K H
V0F.4A-4B.r:66 kadd K H
V0F.90:np kmov K Kkw
V0F.90:66 kmov K Kkb
V0F.91.m:np kmov Kkw! K
V0F.91.m:66 kmov Kkb! K
V0F.92.r:np kmov K Rd
V0F.92.r:66 kmov K Rd
V0F.92.r:F2 kmov K Ry
V0F.93.r:np kmov Gd! K
V0F.93.r:66 kmov Gd! K
V0F.93.r:F2 kmov Gy! K
V0F.98-99.r:np ktest K >oszapc
V0F.98-99.r:66 ktest K >oszapc
V0F3A.30-33.r:66 kshift K Ib
"""

_SIZES = "h f e h f h".split()


def _generated() -> list[str]:
    """Rows of the regular parts of the opcode map."""
    rows = []
    for n, name in enumerate("add or adc sbb and sub xor cmp".split()):
        write = "" if name == "cmp" else "+"
        lock = "" if name == "cmp" else "lk"
        flags = ("<c " if name in ("adc", "sbb") else "") + ALL
        base = n * 8
        for i, operands in enumerate((f"Eb{write} Gb {lock}", f"Ev{write} Gv {lock}", f"Gb{write} Eb", f"Gv{write} Ev",
                                      "AL Ib", "eAX Iz")):
            rows.append(f"{base + i:02X} {name} {operands} {flags}")
        for opcode, operands in (("80", "Eb{} Ib"), ("81", "Ev{} Iz"), ("82", "Eb{} Ib i64"), ("83", "Ev{} Ib")):
            rows.append(f"{opcode}/{n} {name} {operands.format(write)} {lock} {flags}")
    for n, name in enumerate("rol ror rcl rcr shl shr sal sar".split()):
        carry = "<c" if name in ("rcl", "rcr") else ""
        for opcode, operands in (("C0", "Eb+ Ib"), ("C1", "Ev+ Ib"), ("D2", "Eb+ CL"), ("D3", "Ev+ CL")):
            rows.append(f"{opcode}/{n} {name} {operands} {carry}")
        kills = ">oc" if n < 4 else ">oszpc"
        for opcode, operands in (("D0", "Eb+ 1"), ("D1", "Ev+ 1")):
            rows.append(f"{opcode}/{n} {name} {operands} {carry} {kills}")
    for n, cc in enumerate(CC):
        rows += [f"7{n:X} j{cc} Jb f64 %jcc {CONDITIONS[n]}", f"0F.8{n:X} j{cc} Jz f64 %jcc {CONDITIONS[n]}",
                 f"0F.4{n:X} cmov{cc} Gv+ Ev {CONDITIONS[n]}", f"0F.9{n:X} set{cc} Eb! {CONDITIONS[n]}"]
    for opcode, name in ((0x51, "sqrt"), (0x58, "add"), (0x59, "mul"), (0x5C, "sub"), (0x5D, "min"), (0x5E, "div"),
                         (0x5F, "max")):
        packed = "" if name == "sqrt" else "H "
        rows += [f"0F.{opcode:02X}:np {name}ps Vx {packed}Wx", f"0F.{opcode:02X}:66 {name}pd Vx {packed}Wx",
                 f"0F.{opcode:02X}:F3 {name}ss Vx H Wd", f"0F.{opcode:02X}:F2 {name}sd Vx H Wq"]
    for opcode in range(0x54, 0x58):
        rows += [f"0F.{opcode:02X}:np logicps Vx H Wx", f"0F.{opcode:02X}:66 logicpd Vx H Wx"]
    for opcode in range(0x60, 0x6C):
        rows += [f"0F.{opcode:02X}:np packed Pq Q{'d' if opcode < 0x63 else 'q'}", f"0F.{opcode:02X}:66 packed Vx H Wx"]
    integers = [0x74, 0x75, 0x76, *range(0xD1, 0xD6), *range(0xD8, 0xE6), *range(0xE8, 0xF0), *range(0xF1, 0xF7),
                *range(0xF8, 0xFF)]
    shifts = {0xD1, 0xD2, 0xD3, 0xE1, 0xE2, 0xF1, 0xF2, 0xF3}
    for opcode in integers:
        size = "o" if opcode in shifts else "x"  # shift counts are 128 bits wide also with VEX.256
        rows += [f"0F.{opcode:02X}:np packed Pq Qq", f"0F.{opcode:02X}:66 packed Vx H W{size}"]
    for opcode, regs in ((0x71, (2, 4, 6)), (0x72, (2, 4, 6)), (0x73, (2, 6))):
        for reg in regs:
            rows += [f"0F.{opcode:02X}/{reg}.r:np shift Nq Ib", f"0F.{opcode:02X}/{reg}.r:66 shift H Ux Ib"]
    rows += ["0F.73/3.r:66 psrldq H Ux Ib", "0F.73/7.r:66 pslldq H Ux Ib"]
    for opcode in range(0x00, 0x0C):
        rows += [f"0F38.{opcode:02X}:np packed Pq Qq", f"0F38.{opcode:02X}:66 packed Vx H Wx"]
    for opcode in (0x1C, 0x1D, 0x1E):
        rows += [f"0F38.{opcode:02X}:np pabs Pq Qq", f"0F38.{opcode:02X}:66 pabs Vx Wx"]
    for i, size in enumerate(_SIZES):
        rows += [f"0F38.2{i}:66 pmovsx Vx W{size}", f"0F38.3{i}:66 pmovzx Vx W{size}"]
    for opcode in [0x28, 0x29, 0x2B, *range(0x37, 0x41)]:
        rows.append(f"0F38.{opcode:02X}:66 packed Vx H Wx")
    rows.append("0F38.41:66 phminposuw Vx Wo")
    rows += ["0F3A.08:66 roundps Vx Wx Ib", "0F3A.09:66 roundpd Vx Wx Ib"]
    for opcode in (0x0C, 0x0D, 0x0E, 0x0F, 0x40, 0x41, 0x42, 0x44, 0xCE, 0xCF):
        rows.append(f"0F3A.{opcode:02X}:66 packed Vx H Wx Ib")
    for opcode in (0x60, 0x61, 0x62, 0x63):
        rows.append(f"0F3A.{opcode:02X}:66 pcmpstr Vx Wo Ib >oszapc")
    rows.append("0F3A.DF:66 aeskeygenassist Vx Wo Ib")
    return rows


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def rows() -> list[str]:
    """Every row, in order of increasing precedence."""
    regular = _generated()
    vector = [row for row in regular if row.startswith("0F") and " V" in row or " Ux" in row] + _lines(SSE)
    legacy = _lines(INTEGER) + regular + [f"{row} fpu" for row in _lines(X87)] + _lines(SSE)
    vex = ["V" + row for row in vector if "legacy" not in row and not any(f" {mmx}q" in row for mmx in "PQN")
           and (" V" in row or " U" in row)]
    return legacy + vex + _lines(VEX) + _lines(OPMASK)


def system_rows() -> list[str]:
    """Rows of 0F 01 register forms; their key is the ModRM byte."""
    return _lines(SYSTEM_0F01)


def _helper_names() -> list[str]:
    names = {token[1:] for row in (*rows(), *system_rows(), *opcodes_evex.rows()) for token in row.split() if token.startswith("@")}
    return sorted(names | {"arpl"} | set(SLOW_KINDS))


# Kinds that the translator handles itself in 64-bit code only; elsewhere, or in odd cases, a helper does it.
SLOW_KINDS: tuple[str, ...] = tuple(
    "push pop push_imm push_mem pop_mem ret leave xlat loop jcxz call jmp call_ind jmp_ind jcc cli sti rdtsc stos "
    "movs".split()
)
HELPERS: list[str] = _helper_names()
HELPER_NUMBER: dict[str, int] = {name: number for number, name in enumerate(HELPERS)}
KINDS: list[str] = ("plain helper ud nop lea push pop push_imm push_mem pop_mem incdec xchg_a moffs ret leave xlat loop jcxz "
                    "call jmp call_ind jmp_ind jcc bt cli sti cld std rdtsc stos movs").split()

PREFIXES: dict[str, int] = {"np": 0, "66": 1, "F3": 2, "F2": 3}
MAPS: dict[str, int] = {"": 0, "0F": 1, "0F38": 2, "0F3A": 3}


@dataclass(frozen=True, slots=True)
class Form:
    """One distinct row: ``tokens`` are name, operands and attributes; ``pp`` the mandatory prefix or None."""

    vex: bool
    pp: int | None
    tokens: tuple[str, ...]


def build() -> tuple[list[Form], array[int]]:
    """The distinct forms (number 0 is the undefined instruction) and the decoder's index of form numbers.

    The index has the shape [VEX][map][opcode][pp][register form][reg], 2 x 4 x 256 x 4 x 2 x 8.
    """
    forms = [Form(False, None, ("ud", "%ud"))]
    numbers: dict[Form, int] = {}
    index = array("H", bytes(2 * 2 * 4 * 256 * 4 * 2 * 8))
    for row in rows():
        key, *tokens = row.split()
        vex = key.startswith("V")
        key, _, pp = key.removeprefix("V").partition(":")
        registers: tuple[int, ...] = (0, 1)
        if key.endswith((".m", ".r")):
            registers = (0,) if key.endswith("m") else (1,)
            key = key[:-2]
        key, _, reg = key.partition("/")
        escape, _, opcodes = key.rpartition(".")
        low, _, high = opcodes.partition("-")
        mandatory = pp and (vex or pp != "np" or any(token[0] in "VUPQNW" for token in tokens[1:]))
        form = Form(vex, PREFIXES[pp] if mandatory else None, tuple(tokens))
        if form not in numbers:
            numbers[form] = len(forms)
            forms.append(form)
        number = numbers[form]
        for opcode in range(int(low, 16), int(high or low, 16) + 1):
            for prefix in (PREFIXES[pp],) if pp else range(4):
                base = (((vex * 4 + MAPS[escape]) * 256 + opcode) * 4 + prefix) * 16
                for register in registers:
                    if reg:
                        index[base + 8 * register + int(reg)] = number
                    else:
                        start = base + 8 * register
                        index[start : start + 8] = array("H", [number] * 8)
    return forms, index
