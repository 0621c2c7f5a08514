/* Whether this CPU, and this system, can run the library's kernels. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "runtime.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char missing[512];

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, OSXSAVE = 27 };

/* XGETBV as bytes: compilers ask for -mxsave otherwise, and this file is for any x86-64. */
static uint64_t saved_state(void) {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> OSXSAVE & 1)) return 0;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(eax), "=d"(edx) : "c"(0));
  return (uint64_t)edx << 32 | eax;
}

static int has(const WtFeature *feature, uint64_t saved) {
  uint32_t regs[4];
  if (!__get_cpuid_count(feature->leaf, feature->subleaf, &regs[0], &regs[1], &regs[2], &regs[3]))
    return 0;
  if (!(regs[feature->reg] >> feature->bit & 1)) return 0;
  if ((saved & feature->saved) != feature->saved) return 0;
  return !feature->asks || syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
static uint64_t saved_state(void) { return 0; }
static int has(const WtFeature *feature, uint64_t saved) {
  (void)feature, (void)saved;
  return 0;
}
#endif

static void find_missing(void) {
  uint64_t saved = saved_state();
  for (int32_t i = 0; i < wt_num_features; ++i) {
    if (has(&wt_features[i], saved)) continue;
    size_t used = strlen(missing);
    snprintf(missing + used, sizeof(missing) - used, "%s%s", used ? ", " : "", wt_features[i].name);
  }
}

const char *wt_missing_features(void) {
  pthread_once(&once, find_missing);
  return missing;
}

int wt_check_cpu(void) {
  const char *names = wt_missing_features();
  if (!names[0]) return WT_OK;
  wt_message_begin("TargetError");
  wt_message_add("this library was compiled for a CPU with %s, which this CPU or its system lacks",
                 names);
  return WT_FAILED;
}
