/* SSE4.2 and AVX2: arithmetic, shuffles, gathers, masks, comparisons of strings, conversions, fused multiply-add. */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { WORDS = 4096 };

static uint32_t data[WORDS] __attribute__((aligned(32)));
static float floats[WORDS] __attribute__((aligned(32)));

static void show(const char *name, __m256i value)
{
    uint64_t words[4];
    memcpy(words, &value, 32);
    printf("%s %016lx %016lx %016lx %016lx\n", name, words[3], words[2], words[1], words[0]);
}

static void integers(void)
{
    __m256i sum = _mm256_setzero_si256(), mix = _mm256_set1_epi32(0x01234567);
    const __m256i turn = _mm256_setr_epi8(3, 2, 1, 0, 7, 6, 5, 4, -1, 10, 9, 8, 15, 14, 13, 12, 1, 0, 3, 2, 5, 4, 7, 6, 9,
                                          8, 11, -128, 13, 12, 15, 14);
    for (int i = 0; i < WORDS; i += 8) {
        __m256i v = _mm256_load_si256((const __m256i *)(data + i));
        sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(v, mix));
        sum = _mm256_xor_si256(sum, _mm256_shuffle_epi8(v, turn));
        sum = _mm256_add_epi64(sum, _mm256_mul_epu32(v, _mm256_srli_epi64(v, 32)));
        sum = _mm256_sub_epi16(sum, _mm256_mulhi_epi16(v, mix));
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(v, mix));
        sum = _mm256_max_epu8(sum, _mm256_avg_epu8(v, sum));
        sum = _mm256_adds_epi16(sum, _mm256_packs_epi32(v, mix));
        sum = _mm256_xor_si256(sum, _mm256_sllv_epi32(v, _mm256_and_si256(mix, _mm256_set1_epi32(31))));
        sum = _mm256_add_epi32(sum, _mm256_srav_epi32(v, _mm256_set1_epi32(i & 31)));
        mix = _mm256_permutevar8x32_epi32(_mm256_alignr_epi8(v, mix, 5), _mm256_setr_epi32(5, 2, 7, 0, 3, 6, 1, 4));
        mix = _mm256_blendv_epi8(mix, sum, _mm256_cmpgt_epi32(v, mix));
    }
    show("sum", sum);
    show("mix", mix);
    show("unpack", _mm256_unpackhi_epi8(sum, mix));
    show("halves", _mm256_permute2x128_si256(sum, mix, 0x21));
    show("quads", _mm256_permute4x64_epi64(sum, 0x1B));
    show("widen", _mm256_cvtepi8_epi32(_mm256_castsi256_si128(mix)));
    show("horizontal", _mm256_hadd_epi32(sum, mix));
    show("sad", _mm256_mpsadbw_epu8(sum, mix, 0x2D));
    printf("masks %08x %d %d\n", _mm256_movemask_epi8(sum), _mm256_testz_si256(sum, mix), _mm256_testc_si256(mix, sum));
}

static void gathers(void)
{
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < 500; i++) {
        __m256i index = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(data + i)), _mm256_set1_epi32(WORDS - 1));
        total = _mm256_add_epi32(total, _mm256_i32gather_epi32((const int *)data, index, 4));
        __m256i mask = _mm256_slli_epi32(index, 27);
        total = _mm256_xor_si256(total, _mm256_mask_i32gather_epi32(total, (const int *)data, index, mask, 4));
    }
    show("gathered", total);
    uint32_t out[16] = {0};
    _mm256_maskstore_epi32((int *)out + 3, _mm256_setr_epi32(-1, 0, -1, -1, 0, 0, -1, 0), total);
    for (int i = 0; i < 16; i++)
        printf("%x ", out[i]);
    printf("\n");
}

static void reals(void)
{
    __m256 sum = _mm256_setzero_ps();
    __m256d wide = _mm256_setzero_pd();
    for (int i = 0; i < WORDS; i += 8) {
        __m256 v = _mm256_loadu_ps(floats + i);
        sum = _mm256_fmadd_ps(v, _mm256_set1_ps(0.25f), sum);
        sum = _mm256_sub_ps(sum, _mm256_div_ps(v, _mm256_add_ps(_mm256_sqrt_ps(_mm256_mul_ps(v, v)), _mm256_set1_ps(1))));
        wide = _mm256_fnmadd_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_set1_pd(0.1), wide);
        wide = _mm256_addsub_pd(wide, _mm256_cvtepi32_pd(_mm_cvtps_epi32(_mm_set1_ps(floats[i]))));
        sum = _mm256_blendv_ps(sum, _mm256_round_ps(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC), _mm256_cmp_ps(v, sum, 30));
    }
    float f[8];
    double d[4];
    _mm256_storeu_ps(f, _mm256_permute_ps(_mm256_hadd_ps(sum, _mm256_shuffle_ps(sum, sum, 0x4E)), 0xB1));
    _mm256_storeu_pd(d, wide);
    for (int i = 0; i < 8; i++)
        printf("%a ", f[i]);
    for (int i = 0; i < 4; i++)
        printf("%a ", d[i]);
    printf("\n");
    printf("dot %a min %a\n", _mm_cvtss_f32(_mm_dp_ps(_mm_loadu_ps(f), _mm_loadu_ps(f + 4), 0xF1)),
           _mm_cvtss_f32(_mm_min_ps(_mm_loadu_ps(f), _mm_loadu_ps(f + 4))));
}

static void strings(void)
{
    const char text[] = "the quick brown fox jumps over the lazy dog";
    unsigned crc = 0xFFFFFFFF;
    for (size_t i = 0; i < sizeof text; i++)
        crc = _mm_crc32_u8(crc, (unsigned char)text[i]);
    printf("crc %08x %016llx\n", crc, _mm_crc32_u64(crc, 0x0123456789ABCDEF));
    __m128i vowels = _mm_setr_epi8('a', 'e', 'i', 'o', 'u', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    for (size_t i = 0; i + 16 < sizeof text; i += 5) {
        __m128i part = _mm_loadu_si128((const __m128i *)(text + i));
        printf("%d/%d ", _mm_cmpistri(vowels, part, _SIDD_CMP_EQUAL_ANY), _mm_cmpestri(vowels, 5, part, 16, 0x40));
    }
    printf("\n");
}

int main(void)
{
    uint32_t state = 2463534242u;
    for (int i = 0; i < WORDS; i++) {
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        data[i] = state;
        floats[i] = (float)(int32_t)state / 65536;
    }
    for (int round = 0; round < 20; round++) {
        integers();
        gathers();
        reals();
        _mm256_zeroupper();
        strings();
        for (int i = 0; i < WORDS; i++)
            data[i] = data[i] * 2654435761u + (uint32_t)round;
    }
    return 0;
}
