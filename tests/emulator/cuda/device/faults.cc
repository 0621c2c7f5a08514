#include "faults.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <ucontext.h>

#include "memory.h"

namespace emu {

Failure failure;

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
int seconds = 60;  // a launch may compute; the slowest test takes a few

// Faults are handled on a stack of their own: that of the thread may be what is full.
char handler_stack[64 << 10];
pthread_t launching;
Status fault;
char fault_text[256];

void limit_time(long whole, long microseconds) {
  itimerval limit = {{0, 0}, {whole, microseconds}};
  setitimer(ITIMER_VIRTUAL, &limit, nullptr);
}

// Where a thread goes on after a fault, on an empty stack.
void landed() { fail_as(fault, "%s", fault_text); }

void describe(int number, const char *address) {
  const char *low = self->stack_end - kStack;
  fault = kLaunchFailed;
  if (number == SIGFPE) {
    snprintf(fault_text, sizeof(fault_text), "an integer is divided by zero");
  } else if (number == SIGVTALRM) {
    snprintf(fault_text, sizeof(fault_text), "the launch computes for %d s", seconds);
  } else if (address >= low && address < low + kPage) {
    snprintf(fault_text, sizeof(fault_text), "the stack of a thread is full");
  } else {
    fault = kIllegalAddress;
    snprintf(fault_text, sizeof(fault_text), "illegal access: %s", describe_address(address));
  }
}

void on_signal(int number, siginfo_t *info, void *data) {
  bool ours = self && pthread_equal(pthread_self(), launching);
  if (!ours && number == SIGVTALRM) return limit_time(0, 10000);  // later, in a thread of the kernel
  if (!ours) {
    signal(number, SIG_DFL);  // what happens without us: the instruction runs again
    return;
  }
  describe(number, (const char *)info->si_addr);
  auto *registers = ((ucontext_t *)data)->uc_mcontext.gregs;
  registers[REG_RSP] = (greg_t)(self->stack_end - 8);
  registers[REG_RIP] = (greg_t)landed;
}

void set_failure(Status status, const char *format, va_list values) {
  vsnprintf(failure.text, sizeof(failure.text) / 2, format, values);
  size_t used = strlen(failure.text);
  if (self)
    snprintf(failure.text + used, sizeof(failure.text) - used, " (thread %d of block %u,%u,%u)",
             self->number, grid.index.x, grid.index.y, grid.index.z);
  failure.status = status;
}

}  // namespace

Watch::Watch() {
  launching = pthread_self();
  stack_t mine = {};
  mine.ss_sp = handler_stack;
  mine.ss_size = sizeof(handler_stack);
  sigaltstack(&mine, &stack_before_);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &before_[i]);
  limit_time(seconds, 0);
}

Watch::~Watch() {
  limit_time(0, 0);
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  sigaltstack(&stack_before_, nullptr);
}

void fail_as(Status status, const char *format, ...) {
  va_list values;
  va_start(values, format);
  set_failure(status, format, values);
  va_end(values);
  abandon();
}

void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  set_failure(kLaunchFailed, format, values);
  va_end(values);
  abandon();
}

}  // namespace emu

extern "C" {

void emu_time_limit(int limit) { emu::seconds = limit; }

// What compilers call for -fsanitize, as far as image.py asks for it.

struct Mismatch {
  const char *file;
  uint32_t line, column;
  const void *type;
  uint8_t log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1_abort(const Mismatch *data, const void *address) {
  unsigned align = 1u << data->log_alignment;
  emu::fail_as(emu::kMisaligned, "misaligned access: %s is not a multiple of %u",
               emu::describe_address(address), align);
}

void __ubsan_handle_out_of_bounds_abort(const void *, uint64_t index) {
  emu::fail("index %lld is outside of its array", (long long)index);
}

#define EMU_OVERFLOW(operation)                                                     \
  void __ubsan_handle_##operation##_overflow_abort(const void *, uint64_t, uint64_t) { \
    emu::fail("signed integers overflow in " #operation);                           \
  }
EMU_OVERFLOW(add)
EMU_OVERFLOW(sub)
EMU_OVERFLOW(mul)
EMU_OVERFLOW(negate)
EMU_OVERFLOW(divrem)

void __ubsan_handle_shift_out_of_bounds_abort(const void *, uint64_t, uint64_t by) {
  emu::fail("a shift by %lld bits", (long long)by);
}

}  // extern "C"
