"""The EVEX rows of the opcode table: AVX-512 (Intel SDM Vol. 2, sections 2.7 and 5, and each instruction's page).

The notation is that of ``opcodes``, without the V. A key may end in ``W0`` or ``W1`` behind its prefix where EVEX.W is
part of the opcode; else W means nothing, or chooses between 4 and 8 bytes where a ``y`` stands. What is added to it:

operands ``K`` an opmask register; ``H`` a vector register in vvvv, which must be 1111b where there is no ``H``; ``S`` the
         memory operand of gathers and scatters. Sizes are those of a vector of EVEX.L'L: x, h, f, e; ``b`` is one
         byte here, ``w`` two, ``d4`` and ``d8`` 32 bytes.
``*``    behind a size: EVEX.b may broadcast one element of 4 bytes, with W1 of 8, from memory.
``k1 k2 k4 k8 ky`` a mask may be given (EVEX.aaa), which has one bit for this many bytes of the memory operand, and
         those whose bit is clear are not accessed; ``kn``: a mask may be given, and the operand is accessed whole.
``whole`` ... of which those whose bit is clear are not stored, but must be accessible.
``nz``   no zeroing (EVEX.z). Where memory or an opmask is the destination there never is.
``er``   EVEX.b rounds as L'L says in register forms; ``sae`` it keeps exceptions quiet, or means nothing.
``l0 l12 l2`` the vector lengths there are: 128; 256 and 512; 512. ``lig`` L'L means nothing.
``bc``   memory is repeated to fill the vector: an element of it is accessed if a mask bit of one of its copies is set.
``packed`` memory holds only the elements whose mask bit is set, one behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_ROWS = """
0F.10:npW0 vmovups Vx Wx ky
0F.10:66W1 vmovupd Vx Wx ky
0F.10.m:F3W0 vmovss Vx Wd ky lig
0F.10.r:F3W0 vmovss Vx H Wd ky lig
0F.10.m:F2W1 vmovsd Vx Wq ky lig
0F.10.r:F2W1 vmovsd Vx H Wq ky lig
0F.11:npW0 vmovups Wx! Vx ky
0F.11:66W1 vmovupd Wx! Vx ky
0F.11.m:F3W0 vmovss Wd! Vx ky lig
0F.11.r:F3W0 vmovss Wd H Vx ky lig
0F.11.m:F2W1 vmovsd Wq! Vx ky lig
0F.11.r:F2W1 vmovsd Wq H Vx ky lig
0F.12:npW0 vmovlps Vx H Wq l0
0F.12.m:66W1 vmovlpd Vx H Mq l0
0F.12:F3W0 vmovsldup Vx Wx kn
0F.12:F2W1 vmovddup Vx Wdup kn
0F.13.m:npW0 vmovlps Mq! Vx l0
0F.13.m:66W1 vmovlpd Mq! Vx l0
0F.14-15:npW0 vunpckps Vx H Wx* kn
0F.14-15:66W1 vunpckpd Vx H Wx* kn
0F.16:npW0 vmovhps Vx H Wq l0
0F.16.m:66W1 vmovhpd Vx H Mq l0
0F.16:F3W0 vmovshdup Vx Wx kn
0F.17.m:npW0 vmovhps Mq! Vx l0
0F.17.m:66W1 vmovhpd Mq! Vx l0
0F.28:npW0 vmovaps Vx Wx ky
0F.28:66W1 vmovapd Vx Wx ky
0F.29:npW0 vmovaps Wx! Vx ky
0F.29:66W1 vmovapd Wx! Vx ky
0F.2A:F3 vcvtsi2ss Vx H Ey er lig
0F.2A:F2W0 vcvtsi2sd Vx H Ed sae lig
0F.2A:F2W1 vcvtsi2sd Vx H Eq er lig
0F.2B.m:npW0 vmovntps Mx! Vx
0F.2B.m:66W1 vmovntpd Mx! Vx
0F.2C:F3 vcvttss2si Gy! Wd sae lig
0F.2C:F2 vcvttsd2si Gy! Wq sae lig
0F.2D:F3 vcvtss2si Gy! Wd er lig
0F.2D:F2 vcvtsd2si Gy! Wq er lig
0F.2E-2F:npW0 vcomiss Vx Wd sae lig >oszapc
0F.2E-2F:66W1 vcomisd Vx Wq sae lig >oszapc
0F.5A:npW0 vcvtps2pd Vx Wh* k4 sae
0F.5A:66W1 vcvtpd2ps Vx Wx* k8 er
0F.5A:F3W0 vcvtss2sd Vx H Wd k4 sae lig
0F.5A:F2W1 vcvtsd2ss Vx H Wq k8 er lig
0F.5B:np vcvtdq2ps Vx Wx* ky er
0F.5B:66W0 vcvtps2dq Vx Wx* k4 er
0F.5B:F3W0 vcvttps2dq Vx Wx* k4 sae
0F.60-61:66 vpunpckl Vx H Wx kn
0F.62:66W0 vpunpckldq Vx H Wx* kn
0F.63:66 vpacksswb Vx H Wx kn
0F.64:66 vpcmpgtb K H Wx k1
0F.65:66 vpcmpgtw K H Wx k2
0F.66:66W0 vpcmpgtd K H Wx* k4
0F.67:66 vpackuswb Vx H Wx kn
0F.68-69:66 vpunpckh Vx H Wx kn
0F.6A:66W0 vpunpckhdq Vx H Wx* kn
0F.6B:66W0 vpackssdw Vx H Wx* kn
0F.6C-6D:66W1 vpunpckqdq Vx H Wx* kn
0F.6E:66 vmovd Vx Ey l0
0F.6F:66 vmovdqa Vx Wx ky
0F.6F:F3 vmovdqu Vx Wx ky
0F.6F:F2W0 vmovdqu8 Vx Wx k1
0F.6F:F2W1 vmovdqu16 Vx Wx k2
0F.70:66W0 vpshufd Vx Wx* Ib kn
0F.70:F3 vpshufhw Vx Wx Ib kn
0F.70:F2 vpshuflw Vx Wx Ib kn
0F.71/2:66 vpshiftw H Wx Ib k2
0F.71/4:66 vpshiftw H Wx Ib k2
0F.71/6:66 vpshiftw H Wx Ib k2
0F.72/0-1:66 vprotate H Wx* Ib ky
0F.72/2:66W0 vpshiftd H Wx* Ib k4
0F.72/4:66 vpsra H Wx* Ib ky
0F.72/6:66W0 vpshiftd H Wx* Ib k4
0F.73/2:66W1 vpshiftq H Wx* Ib k8
0F.73/3:66 vpsrldq H Wx Ib
0F.73/6:66W1 vpshiftq H Wx* Ib k8
0F.73/7:66 vpslldq H Wx Ib
0F.74:66 vpcmpeqb K H Wx k1
0F.75:66 vpcmpeqw K H Wx k2
0F.76:66W0 vpcmpeqd K H Wx* k4
0F.78:np vcvtt2udq Vx Wx* ky sae
0F.78:66W0 vcvttps2uqq Vx Wh* k4 sae
0F.78:66W1 vcvttpd2uqq Vx Wx* k8 sae
0F.78:F3 vcvttss2usi Gy! Wd sae lig
0F.78:F2 vcvttsd2usi Gy! Wq sae lig
0F.79:np vcvt2udq Vx Wx* ky er
0F.79:66W0 vcvtps2uqq Vx Wh* k4 er
0F.79:66W1 vcvtpd2uqq Vx Wx* k8 er
0F.79:F3 vcvtss2usi Gy! Wd er lig
0F.79:F2 vcvtsd2usi Gy! Wq er lig
0F.7A:66W0 vcvttps2qq Vx Wh* k4 sae
0F.7A:66W1 vcvttpd2qq Vx Wx* k8 sae
0F.7A:F3W0 vcvtudq2pd Vx Wh* k4 sae
0F.7A:F3W1 vcvtuqq2pd Vx Wx* k8 er
0F.7A:F2 vcvtu2ps Vx Wx* ky er
0F.7B:66W0 vcvtps2qq Vx Wh* k4 er
0F.7B:66W1 vcvtpd2qq Vx Wx* k8 er
0F.7B:F3 vcvtusi2ss Vx H Ey er lig
0F.7B:F2W0 vcvtusi2sd Vx H Ed sae lig
0F.7B:F2W1 vcvtusi2sd Vx H Eq er lig
0F.7E:66 vmovd Ey! Vx l0
0F.7E:F3W1 vmovq Vx Wq l0
0F.7F:66 vmovdqa Wx! Vx ky
0F.7F:F3 vmovdqu Wx! Vx ky
0F.7F:F2W0 vmovdqu8 Wx! Vx k1
0F.7F:F2W1 vmovdqu16 Wx! Vx k2
0F.C2:npW0 vcmpps K H Wx* Ib k4 sae
0F.C2:66W1 vcmppd K H Wx* Ib k8 sae
0F.C2:F3W0 vcmpss K H Wd Ib k4 sae lig
0F.C2:F2W1 vcmpsd K H Wq Ib k8 sae lig
0F.C4:66 vpinsrw Vx H Ed2 Ib l0
0F.C5.r:66 vpextrw Gd! Ux Ib l0
0F.C6:npW0 vshufps Vx H Wx* Ib kn
0F.C6:66W1 vshufpd Vx H Wx* Ib kn
0F.D1:66 vpsrlw Vx H Wo kn
0F.D2:66W0 vpsrld Vx H Wo kn
0F.D3:66W1 vpsrlq Vx H Wo kn
0F.D4:66W1 vpaddq Vx H Wx* k8
0F.D5:66 vpmullw Vx H Wx k2
0F.D6:66W1 vmovq Wq! Vx l0
0F.D8:66 vpsubusb Vx H Wx k1
0F.D9:66 vpsubusw Vx H Wx k2
0F.DA:66 vpminub Vx H Wx k1
0F.DB:66 vpand Vx H Wx* ky
0F.DC:66 vpaddusb Vx H Wx k1
0F.DD:66 vpaddusw Vx H Wx k2
0F.DE:66 vpmaxub Vx H Wx k1
0F.DF:66 vpandn Vx H Wx* ky
0F.E0:66 vpavgb Vx H Wx k1
0F.E1:66 vpsraw Vx H Wo kn
0F.E2:66 vpsra Vx H Wo kn
0F.E3:66 vpavgw Vx H Wx k2
0F.E4-E5:66 vpmulh Vx H Wx k2
0F.E6:66W1 vcvttpd2dq Vx Wx* k8 sae
0F.E6:F3W0 vcvtdq2pd Vx Wh* k4 sae
0F.E6:F3W1 vcvtqq2pd Vx Wx* k8 er
0F.E6:F2W1 vcvtpd2dq Vx Wx* k8 er
0F.E7.m:66W0 vmovntdq Mx! Vx
0F.E8:66 vpsubsb Vx H Wx k1
0F.E9:66 vpsubsw Vx H Wx k2
0F.EA:66 vpminsw Vx H Wx k2
0F.EB:66 vpor Vx H Wx* ky
0F.EC:66 vpaddsb Vx H Wx k1
0F.ED:66 vpaddsw Vx H Wx k2
0F.EE:66 vpmaxsw Vx H Wx k2
0F.EF:66 vpxor Vx H Wx* ky
0F.F1:66 vpsllw Vx H Wo kn
0F.F2:66W0 vpslld Vx H Wo kn
0F.F3:66W1 vpsllq Vx H Wo kn
0F.F4:66W1 vpmuludq Vx H Wx* k8
0F.F5:66 vpmaddwd Vx H Wx kn
0F.F6:66 vpsadbw Vx H Wx
0F.F8:66 vpsubb Vx H Wx k1
0F.F9:66 vpsubw Vx H Wx k2
0F.FA:66W0 vpsubd Vx H Wx* k4
0F.FB:66W1 vpsubq Vx H Wx* k8
0F.FC:66 vpaddb Vx H Wx k1
0F.FD:66 vpaddw Vx H Wx k2
0F.FE:66W0 vpaddd Vx H Wx* k4
0F38.00:66 vpshufb Vx H Wx kn
0F38.04:66 vpmaddubsw Vx H Wx kn
0F38.0B:66 vpmulhrsw Vx H Wx k2
0F38.0C:66W0 vpermilps Vx H Wx* kn
0F38.0D:66W1 vpermilpd Vx H Wx* kn
0F38.10-12:66W1 vpshiftvw Vx H Wx k2
0F38.10:F3W0 vpmovuswb Wh! Vx k1
0F38.11:F3W0 vpmovusdb Wf! Vx k1
0F38.12:F3W0 vpmovusqb We! Vx k1
0F38.13:66W0 vcvtph2ps Vx Wh k2 sae
0F38.13:F3W0 vpmovusdw Wh! Vx k2
0F38.14-15:66 vprotatev Vx H Wx* ky
0F38.14:F3W0 vpmovusqw Wf! Vx k2
0F38.15:F3W0 vpmovusqd Wh! Vx k4
0F38.16:66 vpermp Vx H Wx* kn l12
0F38.18:66W0 vbroadcastss Vx Wd k4 bc
0F38.19:66W0 vbroadcastf32x2 Vx Wq k4 bc l12
0F38.19:66W1 vbroadcastsd Vx Wq k8 bc l12
0F38.1A.m:66 vbroadcast128 Vx Mo ky bc l12
0F38.1B.m:66 vbroadcast256 Vx Md8 ky bc l2
0F38.1C:66 vpabsb Vx Wx k1
0F38.1D:66 vpabsw Vx Wx k2
0F38.1E:66W0 vpabsd Vx Wx* k4
0F38.1F:66W1 vpabsq Vx Wx* k8
0F38.20:66 vpmovsxbw Vx Wh k1
0F38.21:66 vpmovsxbd Vx Wf k1
0F38.22:66 vpmovsxbq Vx We k1
0F38.23:66 vpmovsxwd Vx Wh k2
0F38.24:66 vpmovsxwq Vx Wf k2
0F38.25:66W0 vpmovsxdq Vx Wh k4
0F38.20:F3W0 vpmovswb Wh! Vx k1
0F38.21:F3W0 vpmovsdb Wf! Vx k1
0F38.22:F3W0 vpmovsqb We! Vx k1
0F38.23:F3W0 vpmovsdw Wh! Vx k2
0F38.24:F3W0 vpmovsqw Wf! Vx k2
0F38.25:F3W0 vpmovsqd Wh! Vx k4
0F38.26:66W0 vptestmb K H Wx k1
0F38.26:66W1 vptestmw K H Wx k2
0F38.26:F3W0 vptestnmb K H Wx k1
0F38.26:F3W1 vptestnmw K H Wx k2
0F38.27:66 vptestm K H Wx* ky
0F38.27:F3 vptestnm K H Wx* ky
0F38.28:66W1 vpmuldq Vx H Wx* k8
0F38.28.r:F3 vpmovm2 Vx Kr
0F38.29:66W1 vpcmpeqq K H Wx* k8
0F38.29.r:F3 vpmov2m K Ux
0F38.2A.m:66W0 vmovntdqa Vx Mx
0F38.2A.r:F3W1 vpbroadcastmb2q Vx Kr
0F38.2B:66W0 vpackusdw Vx H Wx* kn
0F38.2C:66 vscalefp Vx H Wx* ky er
0F38.2D:66 vscalefs Vx H Wy ky er lig
0F38.30:66 vpmovzxbw Vx Wh k1
0F38.31:66 vpmovzxbd Vx Wf k1
0F38.32:66 vpmovzxbq Vx We k1
0F38.33:66 vpmovzxwd Vx Wh k2
0F38.34:66 vpmovzxwq Vx Wf k2
0F38.35:66W0 vpmovzxdq Vx Wh k4
0F38.30:F3W0 vpmovwb Wh! Vx k1
0F38.31:F3W0 vpmovdb Wf! Vx k1
0F38.32:F3W0 vpmovqb We! Vx k1
0F38.33:F3W0 vpmovdw Wh! Vx k2
0F38.34:F3W0 vpmovqw Wf! Vx k2
0F38.35:F3W0 vpmovqd Wh! Vx k4
0F38.36:66 vpermi Vx H Wx* kn l12
0F38.37:66W1 vpcmpgtq K H Wx* k8
0F38.38:66 vpminsb Vx H Wx k1
0F38.38.r:F3 vpmovm2 Vx Kr
0F38.39:66 vpmins Vx H Wx* ky
0F38.39.r:F3 vpmov2m K Ux
0F38.3A:66 vpminuw Vx H Wx k2
0F38.3A.r:F3W0 vpbroadcastmw2d Vx Kr
0F38.3B:66 vpminu Vx H Wx* ky
0F38.3C:66 vpmaxsb Vx H Wx k1
0F38.3D:66 vpmaxs Vx H Wx* ky
0F38.3E:66 vpmaxuw Vx H Wx k2
0F38.3F:66 vpmaxu Vx H Wx* ky
0F38.40:66 vpmull Vx H Wx* ky
0F38.42:66 vgetexpp Vx Wx* ky sae
0F38.43:66 vgetexps Vx H Wy ky sae lig
0F38.44:66 vplzcnt Vx Wx* ky
0F38.45-47:66 vpshiftv Vx H Wx* ky
0F38.4C:66 vrcp14p Vx Wx* ky
0F38.4D:66 vrcp14s Vx H Wy ky lig
0F38.4E:66 vrsqrt14p Vx Wx* ky
0F38.4F:66 vrsqrt14s Vx H Wy ky lig
0F38.50-53:66W0 vpdp Vx H Wx* k4
0F38.52:F3W0 vdpbf16ps Vx H Wx* k4
0F38.54:66W0 vpopcntb Vx Wx k1
0F38.54:66W1 vpopcntw Vx Wx k2
0F38.55:66 vpopcnt Vx Wx* ky
0F38.58:66W0 vpbroadcastd Vx Wd k4 bc
0F38.59:66W0 vbroadcasti32x2 Vx Wq k4 bc
0F38.59:66W1 vpbroadcastq Vx Wq k8 bc
0F38.5A.m:66 vbroadcasti128 Vx Mo ky bc l12
0F38.5B.m:66 vbroadcasti256 Vx Md8 ky bc l2
0F38.62:66W0 vpexpandb Vx Wx k1 packed
0F38.62:66W1 vpexpandw Vx Wx k2 packed
0F38.63:66W0 vpcompressb Wx! Vx k1 packed
0F38.63:66W1 vpcompressw Wx! Vx k2 packed
0F38.64:66 vpblendm Vx H Wx* ky
0F38.65:66 vblendmp Vx H Wx* ky
0F38.66:66W0 vpblendmb Vx H Wx k1
0F38.66:66W1 vpblendmw Vx H Wx k2
0F38.70:66W1 vpshldvw Vx H Wx k2
0F38.71:66 vpshldv Vx H Wx* ky
0F38.72:66W1 vpshrdvw Vx H Wx k2
0F38.72:F3W0 vcvtneps2bf16 Vx Wx* k4
0F38.72:F2W0 vcvtne2ps2bf16 Vx H Wx* kn
0F38.73:66 vpshrdv Vx H Wx* ky
0F38.75:66 vpermi2bw Vx H Wx kn
0F38.76-77:66 vpermi2 Vx H Wx* kn
0F38.78:66W0 vpbroadcastb Vx Wb k1 bc
0F38.79:66W0 vpbroadcastw Vx Ww k2 bc
0F38.7A-7B.r:66W0 vpbroadcastr Vx Rd kn
0F38.7C.r:66 vpbroadcastr Vx Ry kn
0F38.7D:66 vpermt2bw Vx H Wx kn
0F38.7E-7F:66 vpermt2 Vx H Wx* kn
0F38.83:66W1 vpmultishiftqb Vx H Wx* kn
0F38.88:66 vexpandp Vx Wx ky packed
0F38.89:66 vpexpand Vx Wx ky packed
0F38.8A:66 vcompressp Wx! Vx ky packed
0F38.8B:66 vpcompress Wx! Vx ky packed
0F38.8D:66 vpermbw Vx H Wx kn
0F38.8F:66W0 vpshufbitqmb K H Wx k1
0F38.90-93.m:66 vgather Vx S ky nz @evex_gather
0F38.A0-A3.m:66 vscatter S Vx ky nz @evex_scatter
0F38.B4-B5:66W1 vpmadd52 Vx H Wx* k8
0F38.C4:66 vpconflict Vx Wx* kn
0F38.CF:66W0 vgf2p8mulb Vx H Wx k1
0F38.DC-DF:66 vaes Vx H Wx
0F3A.00:66W1 vpermq Vx Wx* Ib kn l12
0F3A.01:66W1 vpermpd Vx Wx* Ib kn l12
0F3A.03:66 valign Vx H Wx* Ib kn
0F3A.04:66W0 vpermilps Vx Wx* Ib kn
0F3A.05:66W1 vpermilpd Vx Wx* Ib kn
0F3A.08:66W0 vrndscaleps Vx Wx* Ib k4 sae
0F3A.09:66W1 vrndscalepd Vx Wx* Ib k8 sae
0F3A.0A:66W0 vrndscaless Vx H Wd Ib k4 sae lig
0F3A.0B:66W1 vrndscalesd Vx H Wq Ib k8 sae lig
0F3A.0F:66 vpalignr Vx H Wx Ib kn
0F3A.14:66 vpextrb Ed1! Vx Ib l0
0F3A.15:66 vpextrw Ed2! Vx Ib l0
0F3A.16:66 vpextr Ey! Vx Ib l0
0F3A.17:66 vextractps Ed! Vx Ib l0
0F3A.18:66 vinsertf128 Vx H Wo Ib kn l12
0F3A.19:66 vextractf128 Wo! Vx Ib ky whole l12
0F3A.1A:66 vinsertf256 Vx H Wd8 Ib kn l2
0F3A.1B:66 vextractf256 Wd8! Vx Ib ky whole l2
0F3A.1D:66W0 vcvtps2ph Wh! Vx Ib k2 sae
0F3A.1E-1F:66 vpcmp K H Wx* Ib ky
0F3A.20:66 vpinsrb Vx H Ed1 Ib l0
0F3A.21:66W0 vinsertps Vx H Wd Ib l0
0F3A.22:66 vpinsr Vx H Ey Ib l0
0F3A.23:66 vshuff128 Vx H Wx* Ib kn l12
0F3A.25:66 vpternlog Vx H Wx* Ib ky
0F3A.26:66 vgetmantp Vx Wx* Ib ky sae
0F3A.27:66 vgetmants Vx H Wy Ib ky sae lig
0F3A.38:66 vinserti128 Vx H Wo Ib kn l12
0F3A.39:66 vextracti128 Wo! Vx Ib ky whole l12
0F3A.3A:66 vinserti256 Vx H Wd8 Ib kn l2
0F3A.3B:66 vextracti256 Wd8! Vx Ib ky whole l2
0F3A.3E-3F:66W0 vpcmpb K H Wx Ib k1
0F3A.3E-3F:66W1 vpcmpw K H Wx Ib k2
0F3A.42:66W0 vdbpsadbw Vx H Wx Ib kn
0F3A.43:66 vshufi128 Vx H Wx* Ib kn l12
0F3A.44:66 vpclmulqdq Vx H Wx Ib
0F3A.50:66 vrangep Vx H Wx* Ib ky sae
0F3A.51:66 vranges Vx H Wy Ib ky sae lig
0F3A.54:66 vfixupimmp Vx H Wx* Ib ky sae
0F3A.55:66 vfixupimms Vx H Wy Ib ky sae lig
0F3A.56:66 vreducep Vx Wx* Ib ky sae
0F3A.57:66 vreduces Vx H Wy Ib ky sae lig
0F3A.66:66 vfpclassp K Wx* Ib ky
0F3A.67:66 vfpclasss K Wy Ib ky lig
0F3A.70:66W1 vpshldw Vx H Wx Ib k2
0F3A.71:66 vpshld Vx H Wx* Ib ky
0F3A.72:66W1 vpshrdw Vx H Wx Ib k2
0F3A.73:66 vpshrd Vx H Wx* Ib ky
0F3A.CE-CF:66W1 vgf2p8affine Vx H Wx* Ib kn
"""


def _regular() -> list[str]:
    """Arithmetic that comes as ps, pd, ss and sd, and fused multiplication."""
    rows = []
    for opcode, name, control in ((0x51, "sqrt", "er"), (0x58, "add", "er"), (0x59, "mul", "er"), (0x5C, "sub", "er"),
                                  (0x5D, "min", "sae"), (0x5E, "div", "er"), (0x5F, "max", "sae")):  # fmt: skip
        second = "" if name == "sqrt" else "H "
        rows += [f"0F.{opcode:02X}:npW0 v{name}ps Vx {second}Wx* k4 {control}",
                 f"0F.{opcode:02X}:66W1 v{name}pd Vx {second}Wx* k8 {control}",
                 f"0F.{opcode:02X}:F3W0 v{name}ss Vx H Wd k4 {control} lig",
                 f"0F.{opcode:02X}:F2W1 v{name}sd Vx H Wq k8 {control} lig"]  # fmt: skip
    rows += ["0F.54-57:npW0 vlogicps Vx H Wx* k4", "0F.54-57:66W1 vlogicpd Vx H Wx* k8"]
    for order in (0x90, 0xA0, 0xB0):
        for opcode in range(order + 6, order + 16):
            scalar = opcode & 1 and opcode & 15 >= 9
            rows.append(f"0F38.{opcode:02X}:66 vfma Vx H {'Wy' if scalar else 'Wx*'} ky er{' lig' if scalar else ''}")
    return rows


PREFIXES = {"np": 0, "66": 1, "F3": 2, "F2": 3}
MAPS = {"0F": 1, "0F38": 2, "0F3A": 3}
ATTRIBUTES = frozenset("k1 k2 k4 k8 ky kn nz er sae l0 l12 l2 lig packed bc whole".split())
_LENGTHS = {"l0": 1, "l12": 6, "l2": 4}
ALL_LENGTHS = 7


@dataclass(frozen=True, slots=True)
class Form:
    """One row. ``tokens`` are its name, operands and attributes."""

    tokens: tuple[str, ...]
    pp: int

    def has(self, token: str) -> bool:
        return token in self.tokens[1:]

    @property
    def lengths(self) -> int:
        """Which values of L'L there are, as bits."""
        return next((bits for token, bits in _LENGTHS.items() if self.has(token)), ALL_LENGTHS)

    @property
    def element(self) -> str:
        """What a mask's bit stands for in memory: a size, "n" for the whole operand, "" where there is no mask."""
        return next((token[1] for token in self.tokens[1:] if len(token) == 2 and token[0] == "k"), "")


@cache
def rows() -> tuple[str, ...]:
    return tuple(line for line in _ROWS.splitlines() if line) + tuple(_regular())


def place(map_: int, opcode: int, pp: int, wide: int, register: bool, reg: int) -> int:
    """The cell of the decoder's index [map - 1][opcode][pp][W][register form][reg]."""
    return (((((map_ - 1) * 256 + opcode) * 4 + pp) * 2 + wide) * 2 + register) * 8 + reg


def cells(row: str) -> tuple[Form, list[int]]:
    """The form of a row, and the cells of the decoder's index where it stands."""
    key, *tokens = row.split()
    key, _, prefix = key.partition(":")
    wide = (0, 1)
    if prefix[2:]:
        wide = (int(prefix[3]),)
        prefix = prefix[:2]
    registers = (False, True)
    if key.endswith((".m", ".r")):
        registers = (key.endswith("r"),)
        key = key[:-2]
    key, _, reg = key.partition("/")
    low, _, high = reg.partition("-")
    regs = range(int(low), int(high or low) + 1) if reg else range(8)
    escape, _, opcode = key.rpartition(".")
    low, _, high = opcode.partition("-")
    places = [
        place(MAPS[escape], number, PREFIXES[prefix], w, register, one)
        for number in range(int(low, 16), int(high or low, 16) + 1)
        for w in wide
        for register in registers
        for one in regs
    ]
    return Form(tuple(tokens), PREFIXES[prefix]), places
