/* What a library's generated tables (dispatch.c) are made of, and what serves calls from them.

   An operator has variants: problems that differ in static sizes or dtypes. A variant has one
   kernel a bucket of the run-time sizes. Everything here knows arguments, not operators. */
#ifndef WATTUNE_RUNTIME_H_
#define WATTUNE_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

enum { WT_MAX_DIMS = 6, WT_MAX_ARGUMENTS = 24, WT_MAX_SYMBOLS = 4 };

/* WT_RAISED: a kernel raised an error of its own, which libtvm_ffi holds. */
enum { WT_OK = 0, WT_FAILED = -1, WT_RAISED = -2 };

typedef enum { WT_ABSENT, WT_INPUT, WT_PACKED, WT_STATE, WT_WORKSPACE, WT_OUTPUT } WtRole;

/* One argument as a variant expects it. dims[i] < 0 is run-time size number ~dims[i]. */
typedef struct {
  WtRole role;
  DLDataType dtype;
  int32_t ndim;
  uint32_t alignment;
  int64_t dims[WT_MAX_DIMS];
  int64_t low, high; /* allowed int8 values; any where low > high */
  const char *text;  /* "[tokens, 2560] float32" */
} WtSlot;

/* Serves run-time sizes up to upper[i]. */
typedef struct {
  TVMFFISafeCallType call;
  int64_t workspace_bytes;
  int64_t upper[WT_MAX_SYMBOLS];
} WtKernel;

typedef struct {
  const WtSlot *slots;     /* one for each argument of the operator */
  const WtKernel *kernels; /* smallest bucket first */
  int32_t num_kernels;
} WtVariant;

/* Run-time size 0 is the one that calls beyond the last bucket are cut along. A pack function is an
   operator too: of two arguments, source and packed, and for any CPU of the architecture. */
typedef struct {
  const char *name;
  int32_t any_cpu;
  const char *const *argument_names;
  const char *const *symbol_names;
  int32_t num_arguments;
  int32_t num_symbols;
  const WtVariant *variants;
  int32_t num_variants;
} WtOperator;

/* One CPUID bit, and the XCR0 bits that say the system saves its registers. */
typedef struct {
  const char *name;
  uint32_t leaf, subleaf;
  int32_t reg; /* 0 eax, 1 ebx, 2 ecx, 3 edx */
  int32_t bit;
  uint64_t saved;
  int32_t asks; /* the kernel must be asked for permission (AMX) */
} WtFeature;

/* Generated. */
extern const WtFeature wt_features[];
extern const int32_t wt_num_features;
extern const int32_t wt_abi_version;
extern const char wt_metadata[];
extern const size_t wt_metadata_bytes;

/* cpu.c: WT_OK where the CPU has every feature; the first call checks. Names what is missing. */
int wt_check_cpu(void);
const char *wt_missing_features(void);

/* scratch.c: 64-byte aligned memory of this thread, kept until the thread ends. */
void *wt_scratch(int64_t bytes);

/* message.c: the text of this thread's last error. */
void wt_message_begin(const char *kind);
void wt_message_add(const char *format, ...) __attribute__((format(printf, 1, 2)));
void wt_message_add_tensor(const DLTensor *tensor);
int wt_raise(int status);        /* for entries that libtvm_ffi calls */
void wt_keep_raised(int status); /* for entries that C calls */

/* checks.c: find the variant, bind run-time sizes, check memory. */
const WtVariant *wt_match(const WtOperator *op, const DLTensor *const *args, int64_t *sizes);
int wt_check_memory(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args);
void *wt_data(const DLTensor *tensor);

/* runtime.c */
int wt_call_ffi(const WtOperator *op, const TVMFFIAny *args, int32_t count);
int wt_call_c(const WtOperator *op, const DLTensor *const *args);
int64_t wt_workspace_bytes(const WtOperator *op);
int64_t wt_packed_bytes(const WtOperator *pack, const int64_t *source_shape);

#endif
