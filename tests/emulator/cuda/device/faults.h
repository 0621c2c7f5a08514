// Faults of kernels: signals and sanitisers' reports become the failure of a launch.
#pragma once
#include <signal.h>

#include "threads.h"

namespace emu {

constexpr size_t kStack = 128 << 10, kPage = 4096;

struct Failure {
  Status status;
  char text[768];
};

extern Failure failure;  // of the launch that runs

// Catches faults of threads while it lives, and ends a launch that computes for too long.
class Watch {
 public:
  Watch();
  ~Watch();

 private:
  struct sigaction before_[4];
  stack_t stack_before_;
};

}  // namespace emu
