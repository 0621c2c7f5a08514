/* Reads memory as fast as a device can: 16 bytes a thread and load, eight loads under way. */

extern "C" __global__ void __launch_bounds__(512) read_kernel(const uint4* data, long long count,
                                                             unsigned* sink) {
  long long stride = (long long)gridDim.x * 512;
  unsigned sum = 0;
  long long at = (long long)blockIdx.x * 512 + threadIdx.x;
  for (; at + 7 * stride < count; at += 8 * stride) {
    uint4 loaded[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) loaded[i] = data[at + i * stride];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
  }
  for (; at < count; at += stride) sum ^= data[at].x ^ data[at].y ^ data[at].z ^ data[at].w;
  /* As good as never, and nobody reads it: without this nothing would be loaded at all. */
  if (sum == 0x5eed5eed) *sink = sum;
}
