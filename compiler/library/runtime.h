/* What a library's generated tables (dispatch.c) are made of, and what serves calls from them.

   An operator has variants: problems that differ in static fields. A variant has one kernel a
   bucket of the run-time sizes. Symbols are the names in shapes: first the run-time sizes, which
   choose the kernel, then the free ones. Everything here knows arguments, not operators. */
#ifndef WATTUNE_RUNTIME_H_
#define WATTUNE_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

enum { WT_MAX_DIMS = 6, WT_MAX_ARGUMENTS = 24, WT_MAX_SYMBOLS = 8 };

/* WT_RAISED: a kernel raised an error of its own, which libtvm_ffi holds. */
enum { WT_OK = 0, WT_FAILED = -1, WT_RAISED = -2 };

typedef enum { WT_ABSENT, WT_INPUT, WT_PACKED, WT_STATE, WT_WORKSPACE, WT_OUTPUT } WtRole;

/* Checks that can be switched off, in the order of wt_check_names. */
enum { WT_RANGES = 1, WT_DUPLICATES = 2 };

/* ceil(size * times / per) + offset. */
typedef struct {
  int64_t offset, times, per;
  int32_t symbol; /* of the size; -1: offset alone */
} WtLimit;

/* Which integers an argument may hold: low to the lesser of two limits. */
typedef struct {
  int64_t low;
  WtLimit high, also;
  int32_t unique;   /* none but negative values twice along the last axis */
  int32_t maximum;  /* the symbol that the greatest value is, or -1 */
  int32_t lengths;  /* argument: row i uses ceil(lengths[i] / used_per) of its values; -1: all */
  int64_t used_per;
} WtValues;

/* One argument as a variant expects it. dims[i] < 0 is symbol number ~dims[i]. */
typedef struct {
  WtRole role;
  DLDataType dtype;
  int32_t ndim;
  uint32_t alignment;
  int32_t written;
  int64_t dims[WT_MAX_DIMS];
  const WtValues *values; /* NULL: any */
  const char *text;       /* "[tokens, 2560] float32" */
} WtSlot;

/* Serves run-time sizes up to upper[i]. */
typedef struct {
  TVMFFISafeCallType call;
  int64_t workspace_bytes;
  int64_t upper[WT_MAX_SYMBOLS];
} WtKernel;

/* A bound of a size that another decides: floor((size * times + plus) / per) * each. */
typedef struct {
  int32_t symbol, of;
  int64_t times, plus, per, each;
} WtExtent;

typedef struct {
  const WtSlot *slots;     /* one for each argument of the operator */
  const WtKernel *kernels; /* smallest bucket first */
  int32_t num_kernels;
  const char *entry;  /* the function for this variant alone */
  const char *fields; /* what tells it from variants of the same tensors; NULL: there are none */
  const WtExtent *extents; /* sizes that are the least of theirs */
  int32_t num_extents;
} WtVariant;

/* Symbol 0 is the run-time size that calls beyond the last bucket are cut along, unless it is open
   ended. A pack function is
   an operator too: of two arguments, source and packed, on the host, for any CPU of its
   architecture. `bounded` are the symbols that are greatest values of tensors which the host cannot
   read: after its tensors, the entry takes the most that each may be. */
typedef struct {
  const char *name;
  int32_t is_pack;
  const char *const *argument_names;
  const char *const *symbol_names;
  int32_t num_arguments;
  int32_t num_symbols;
  int32_t num_runtime; /* symbols that choose the kernel */
  uint32_t open_ended; /* bit i: kernels serve run-time size i beyond their upper end too */
  const WtVariant *variants;
  int32_t num_variants;
  const int32_t *bounded;
  int32_t num_bounded;
} WtOperator;

/* Where kernels run. `use` makes calls of this thread launch on a device, `missing` says what this
   machine lacks, or returns NULL; both are NULL where the kernels are CPU code. */
typedef struct {
  DLDeviceType device;
  void (*use)(int32_t device);
  const char *(*missing)(void);
} WtPlace;

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
extern const WtPlace wt_place;
extern const int32_t wt_abi_version;
extern const char wt_metadata[];
extern const size_t wt_metadata_bytes;
extern const char *const wt_check_names[];
extern const int32_t wt_num_checks;

/* cpu.c: WT_OK where the CPU has every feature; the first call checks. Names what is missing. */
int wt_check_cpu(void);
const char *wt_missing_features(void);

/* scratch.c: 64-byte aligned memory of this thread, kept until the thread ends. */
void *wt_scratch(int64_t bytes);
/* Zeroed memory of this thread for so many bits; to be left zeroed. */
uint64_t *wt_bitmap(int64_t bits);

/* message.c: the text of this thread's last error. */
void wt_message_begin(const char *kind);
void wt_message_add(const char *format, ...) __attribute__((format(printf, 1, 2)));
void wt_message_add_tensor(const DLTensor *tensor);
int wt_raise(int status);        /* for entries that libtvm_ffi calls */
void wt_keep_raised(int status); /* for entries that C calls */

/* match.c: find the variant (number `only`, or any where that is -1), bind the sizes in shapes. */
enum { WT_ANY_VARIANT = -1 };
const WtVariant *wt_match(const WtOperator *op, int32_t only, const DLTensor *const *args,
                          int64_t *sizes);

/* match.c: whether the sizes that others decide are what these make them. */
int wt_check_extents(const WtOperator *op, const WtVariant *variant, const int64_t *sizes);

/* checks.c: whether memory can be used; tells which device all of it is on. */
int wt_check_memory(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args,
                    int32_t *device);
void *wt_data(const DLTensor *tensor);
int64_t wt_elements(const DLTensor *tensor);

/* values.c: whether integers are allowed; binds the sizes that are their greatest values. */
int wt_check_values(const WtOperator *op, const WtVariant *variant, const DLTensor *const *args,
                    int64_t *sizes);
/* For tensors that cannot be read here: binds such sizes to the most they may be, which is what the
   argument's own limit says, or less where the caller does (`most`, one for each of op->bounded;
   0: unknown). */
int wt_bound_values(const WtOperator *op, const WtVariant *variant, const int64_t *most,
                    int64_t *sizes);
void wt_skip_checks(uint32_t mask); /* for all threads, instead of what was skipped before */
uint32_t wt_skipped_checks(void);

/* runtime.c */
int wt_call_ffi(const WtOperator *op, int32_t only, const TVMFFIAny *args, int32_t count);
int wt_call_c(const WtOperator *op, int32_t only, const DLTensor *const *args,
              const int64_t *most);
int64_t wt_workspace_bytes(const WtOperator *op);
int64_t wt_packed_bytes(const WtOperator *pack, const int64_t *source_shape);

#endif
