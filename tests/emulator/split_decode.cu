// Decoding of 8 heads over one key/value head, split over blocks: a small kernel with what the real
// ones have, for planting mistakes in it (test_cuda_mutants.py).
//
// q [8][64], k and v [tokens][64] f16; part [splits][8][64] and lse [splits][8] f32 are scratch,
// counter starts at 0; out [8][64] f32. Each warp streams 16 tokens of every 64 through a ring of
// its own; the last block that ends combines the parts.
#include <cuda_fp16.h>

#define DIM 64
#define HEADS 8
#define WARPS 4
#define STAGES 3
#define TILE (16 * DIM)
#define MASK 0xffffffffu
#define NEVER -1e30f

__device__ __forceinline__ unsigned shared(const void* p) {
  return (unsigned)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void copy(half* to, const half* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared(to)), "l"(from));
}
__device__ __forceinline__ void mma(float* d, const unsigned* a, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void load4(unsigned* r, const half* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared(p)));
}
__device__ __forceinline__ void load4_transposed(unsigned* r, const half* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared(p)));
}
__device__ __forceinline__ unsigned transposed(half low, half high) {
  unsigned r = (unsigned)__half_as_ushort(high) << 16 | __half_as_ushort(low);
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(r));
  return r;
}
__device__ __forceinline__ float over_tokens_max(float x) {
  for (int m = 4; m < 32; m *= 2) x = fmaxf(x, __shfl_xor_sync(MASK, x, m, 32));
  return x;
}
__device__ __forceinline__ float over_tokens_sum(float x) {
  for (int m = 4; m < 32; m *= 2) x += __shfl_xor_sync(MASK, x, m, 32);
  return x;
}
// 16 bytes c of row r lie where 8 rows of one column of them touch every bank.
__device__ __forceinline__ int place(int r, int c) { return r * DIM + (c ^ (r % 8)) * 8; }

extern "C" __global__ void __launch_bounds__(128)
decode_kernel(half* q, half* k, half* v, float* part, float* lse, unsigned* counter, float* out, int tokens) {
  extern __shared__ __align__(128) half ring[];
  __shared__ alignas(128) half qs[HEADS * DIM];
  __shared__ float heads_max[WARPS][HEADS];
  __shared__ float heads_sum[WARPS][HEADS];
  __shared__ unsigned long long arrived;
  __shared__ int others;
  int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  int splits = gridDim.x, split = blockIdx.x;
  int rounds = (tokens + 64 * splits - 1) / (64 * splits);
  half* keys = ring + warp * STAGES * TILE;
  half* values = ring + (WARPS + warp) * STAGES * TILE;

  // The queries come as one bulk copy.
  if (tid == 0) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared(&arrived)));
    asm volatile("fence.mbarrier_init.release.cluster;");
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 1024;" ::"r"(shared(&arrived)));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];"
        ::"r"(shared(qs)), "l"(q), "r"(shared(&arrived)) : "memory");
  }
  __syncthreads();  // the mbarrier is initialised

  auto fetch = [&](int round) {
    int slot = round % STAGES;
    if (round < rounds)
      for (int i = 0; i < 4; ++i) {
        int row = (i * 32 + lane) / 8, c = lane % 8;
        int token = min(((split * rounds + round) * WARPS + warp) * 16 + row, tokens - 1);
        copy(&keys[slot * TILE + place(row, c)], &k[token * DIM + c * 8]);
        copy(&values[slot * TILE + place(row, c)], &v[token * DIM + c * 8]);
      }
    asm volatile("cp.async.commit_group;");
  };
  for (int round = 0; round < STAGES - 1; ++round) fetch(round);

  asm volatile(
      "{ .reg .pred done; WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0; "
      "@done bra OVER; bra WAIT; OVER: }" ::"r"(shared(&arrived)) : "memory");
  unsigned qf[4][2];
  for (int i = 0; i < 4; ++i)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(qf[i][0]), "=r"(qf[i][1])
                 : "r"(shared(&qs[lane % 8 * DIM + i * 16 + lane / 8 % 2 * 8])));

  float o[4][4] = {}, top[2] = {NEVER, NEVER}, sum[2] = {0, 0};
  for (int round = 0; round < rounds; ++round) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");  // STAGES - 2
    __syncwarp();
    fetch(round + STAGES - 1);
    int slot = round % STAGES;
    float s[4] = {};
    unsigned a[4];
    for (int i = 0; i < 4; ++i) {
      load4(a, &keys[slot * TILE + place(lane % 16, i * 2 + lane / 16)]);
      mma(s, a, qf[i][0], qf[i][1]);
    }
    int token = ((split * rounds + round) * WARPS + warp) * 16 + lane / 4;
    half p[4];
    for (int j = 0; j < 4; ++j) s[j] = token + j / 2 * 8 < tokens ? s[j] : NEVER;
    float scale[2];
    for (int j = 0; j < 2; ++j) {
      float now = fmaxf(top[j], over_tokens_max(fmaxf(s[j], s[j + 2])));
      scale[j] = exp2f(top[j] - now);
      top[j] = now;
      sum[j] *= scale[j];
    }
    for (int j = 0; j < 4; ++j) {
      s[j] = s[j] > NEVER / 2 ? exp2f(s[j] - top[j % 2]) : 0;
      sum[j % 2] += s[j];
      p[j] = __float2half_rn(s[j]);
    }
    unsigned p0 = transposed(p[0], p[1]), p1 = transposed(p[2], p[3]);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) o[i][j] *= scale[j % 2];
      load4_transposed(a, &values[slot * TILE + place(lane / 16 * 8 + lane % 8, i * 2 + lane / 8 % 2)]);
      mma(o[i], a, p0, p1);
    }
  }
  for (int j = 0; j < 2; ++j) sum[j] = over_tokens_sum(sum[j]);

  // The warps' results meet in the memory of the rings.
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();  // every warp is done with its ring
  float(*os)[HEADS][DIM] = (float(*)[HEADS][DIM])ring;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) os[warp][lane % 4 * 2 + j % 2][i * 16 + j / 2 * 8 + lane / 4] = o[i][j];
  if (lane < 4)
    for (int j = 0; j < 2; ++j) {
      heads_max[warp][lane * 2 + j] = top[j];
      heads_sum[warp][lane * 2 + j] = sum[j];
    }
  __syncthreads();  // all warps have written
  for (int at = tid; at < HEADS * DIM; at += 128) {
    int h = at / DIM, d = at % DIM;
    float most = NEVER, total = 0, x = 0;
    for (int w = 0; w < WARPS; ++w) most = fmaxf(most, heads_max[w][h]);
    for (int w = 0; w < WARPS; ++w) {
      float share = exp2f(heads_max[w][h] - most);
      total += heads_sum[w][h] * share;
      x += os[w][h][d] * share;
    }
    part[(split * HEADS + h) * DIM + d] = total > 0 ? x / total : 0;
    if (d == 0) lse[split * HEADS + h] = total > 0 ? most + log2f(total) : NEVER;
  }

  // The last block combines the parts.
  __threadfence();
  __syncthreads();  // the block's part is written
  if (tid == 0) others = splits - 1 - atomicAdd(counter, 1);
  __syncthreads();  // everyone knows
  if (others) return;
  __threadfence();
  for (int at = tid; at < HEADS * DIM; at += 128) {
    int h = at / DIM;
    float most = NEVER, total = 0, x = 0;
    for (int i = 0; i < splits; ++i) most = fmaxf(most, lse[i * HEADS + h]);
    for (int i = 0; i < splits; ++i) {
      float share = exp2f(lse[i * HEADS + h] - most);
      total += share;
      x += share * part[i * HEADS * DIM + at];
    }
    out[at] = x / total;
  }
}
