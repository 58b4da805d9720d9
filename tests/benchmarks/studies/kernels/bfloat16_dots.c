// Multiply-adds of float32 vectors and dot products of bfloat16 pairs, in turn, each into 16 accumulators.
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { ACCUMULATORS = 16, ROUNDS = 5 };
static const long STEPS = 4000000;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

// Keeps the compiler from seeing that the sums could be had without the loop.
#define USED(x) __asm__ volatile("" : "+v"(x))

static double float32_seconds(__m512 x, __m512 y) {
    __m512 sums[ACCUMULATORS] = {0};
    double begin = seconds();
    for (long step = 0; step < STEPS; step++)
        for (int i = 0; i < ACCUMULATORS; i++) {
            sums[i] = _mm512_fmadd_ps(x, y, sums[i]);
            USED(sums[i]);
        }
    return seconds() - begin;
}

static double bfloat16_seconds(__m512bh x, __m512bh y) {
    __m512 sums[ACCUMULATORS] = {0};
    double begin = seconds();
    for (long step = 0; step < STEPS; step++)
        for (int i = 0; i < ACCUMULATORS; i++) {
            sums[i] = _mm512_dpbf16_ps(sums[i], x, y);
            USED(sums[i]);
        }
    return seconds() - begin;
}

int main(void) {
    __m512 x = _mm512_set1_ps(1e-9f), y = _mm512_set1_ps(0.5f);
    __m512bh pairs_x = _mm512_cvtne2ps_pbh(x, x), pairs_y = _mm512_cvtne2ps_pbh(y, y);
    double float32 = 1e9, bfloat16 = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        double taken = float32_seconds(x, y);
        float32 = taken < float32 ? taken : float32;
        taken = bfloat16_seconds(pairs_x, pairs_y);
        bfloat16 = taken < bfloat16 ? taken : bfloat16;
    }
    double lanes = 16.0 * ACCUMULATORS * STEPS * 1e-9;
    printf("float32 multiply-adds  %6.1f GFLOP/s of one core\n", 2 * lanes / float32);
    printf("bfloat16 dot products  %6.1f GFLOP/s of one core, %.2f as many\n", 4 * lanes / bfloat16, 2 * float32 / bfloat16);
    return 0;
}
