/* Times compiled kernels on a board that has a C library and nothing else; prints rows of a kernel table.

   Each kernel is called `calls` times in a row, with weights of its own each time; its time is the least of many such
   rows, by call. It is measured twice with operands elsewhere in memory, a third time where the two differ by more
   than 5 %, and the closest two are written. Every 20 kernels the first one is timed again: a board that got slower by
   10 % says so. A run that was stopped goes on: rows that stand in the file already are left out. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { int32_t type, id; } device_t;
typedef struct { uint8_t code, bits; uint16_t lanes; } dtype_t;
typedef struct { /* dlpack.h: DLTensor */
  void *data; device_t device; int32_t ndim; dtype_t dtype; int64_t *shape, *strides; uint64_t byte_offset;
} tensor_t;
typedef struct { int32_t type_index; uint32_t rest; union { void *pointer; int64_t integer; }; } any_t; /* TVMFFIAny */
enum { TENSOR_INDEX = 7, CPU = 1, MOST_OPERANDS = 12, MOST_DIMENSIONS = 6 };

typedef struct { int own, below, code, bits, ndim; int64_t shape[MOST_DIMENSIONS]; } operand_t;
typedef int (*kernel_t)(void *, any_t *, int, any_t *);
typedef struct { const char *cells; kernel_t call; int calls, operands; operand_t operand[MOST_OPERANDS]; } entry_t;

extern const entry_t entries[];
extern const int entry_count;
extern const char table_header[];

static int failed;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  failed = 1;
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; i++) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

/* Workspace as TVM's pool hands it out: what was given back is given out again. */
static struct { void *memory; uint64_t size; int used; } pool[16];

static void *alloc_workspace(int type, int id, uint64_t size, int code, int bits) {
  (void)type; (void)id; (void)code; (void)bits;
  int free_at = -1;
  for (int i = 0; i < 16; i++) {
    if (!pool[i].used && pool[i].memory && pool[i].size >= size) { pool[i].used = 1; return pool[i].memory; }
    if (!pool[i].used) free_at = i;
  }
  if (free_at < 0) return NULL;
  free(pool[free_at].memory);
  pool[free_at].memory = aligned_alloc(64, (size + 63) / 64 * 64);
  pool[free_at].size = size;
  pool[free_at].used = pool[free_at].memory != NULL;
  return pool[free_at].memory;
}

static int free_workspace(int type, int id, void *memory) {
  (void)type; (void)id;
  for (int i = 0; i < 16; i++) if (pool[i].memory == memory) pool[i].used = 0;
  return 0;
}

/* Defined by the kernels too, where one needs workspace. */
__attribute__((weak)) void *__TVMBackendAllocWorkspace, *__TVMBackendFreeWorkspace;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint32_t state = 1;
static uint32_t draw(void) { return state = state * 1664525u + 1013904223u; }

static uint64_t elements(const operand_t *o) {
  uint64_t count = 1;
  for (int d = 0; d < o->ndim; d++) count *= o->shape[d];
  return count;
}

static void fill(const operand_t *o, void *data) {
  uint64_t count = elements(o);
  for (uint64_t i = 0; i < count; i++) {
    uint32_t r = draw() >> 8;
    if (o->below) ((int32_t *)data)[i] = r % o->below;
    else if (o->code == 2 && o->bits == 32) ((float *)data)[i] = (float)r / (1 << 23) - 1.0f;
    else if (o->bits == 32) ((int32_t *)data)[i] = (int32_t)(r % 2000) - 1000;
    else if (o->bits == 16) ((uint16_t *)data)[i] = 0x3C00 + r % 128;
    else ((int8_t *)data)[i] = 1 + r % 100;
  }
}

/* Tensors of all calls of an entry, in one block of memory; NULL where there is not enough. */
typedef struct { any_t *arguments; tensor_t *tensors; int64_t *strides; char *memory; } operands_t;

static void release(operands_t *held) {
  free(held->arguments); free(held->tensors); free(held->strides); free(held->memory);
}

static int prepare(const entry_t *e, operands_t *held, uint64_t offset) {
  uint64_t size = 64 + offset;
  for (int o = 0; o < e->operands; o++) {
    uint64_t one = (elements(&e->operand[o]) * e->operand[o].bits / 8 + 127) / 64 * 64;
    size += one * (e->operand[o].own ? e->calls : 1);
  }
  uint64_t count = (uint64_t)e->calls * e->operands;
  held->arguments = calloc(count, sizeof(any_t));
  held->tensors = calloc(count, sizeof(tensor_t));
  held->strides = calloc(count * MOST_DIMENSIONS, sizeof(int64_t));
  held->memory = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  if (!held->arguments || !held->tensors || !held->strides || !held->memory) { release(held); return 0; }
  char *next = held->memory + offset;
  for (int o = 0; o < e->operands; o++) {
    const operand_t *operand = &e->operand[o];
    for (int c = 0; c < e->calls; c++) {
      uint64_t at = (uint64_t)c * e->operands + o;
      tensor_t *t = &held->tensors[at];
      if (c && !operand->own) t->data = held->tensors[o].data;
      else {
        t->data = next;
        fill(operand, next);
        next += (elements(operand) * operand->bits / 8 + 127) / 64 * 64;
      }
      t->device = (device_t){CPU, 0};
      t->ndim = operand->ndim;
      t->dtype = (dtype_t){(uint8_t)operand->code, (uint8_t)operand->bits, 1};
      t->shape = (int64_t *)operand->shape;
      t->strides = &held->strides[at * MOST_DIMENSIONS];
      for (int64_t d = operand->ndim - 1, s = 1; d >= 0; s *= operand->shape[d--]) t->strides[d] = s;
      held->arguments[at] = (any_t){TENSOR_INDEX, 0, {t}};
    }
  }
  return 1;
}

static double row_s(const entry_t *e, const operands_t *held) {
  any_t result = {0, 0, {NULL}};
  double start = now();
  for (int c = 0; c < e->calls && !failed; c++)
    if (e->call(NULL, held->arguments + (uint64_t)c * e->operands, e->operands, &result)) failed = 1;
  return now() - start;
}

/* Least seconds of a call; below 0: not enough memory, or the kernel failed. */
static double measure(const entry_t *e, uint64_t offset) {
  operands_t held;
  if (!prepare(e, &held, offset)) return -1;
  double least = row_s(e, &held), first = row_s(e, &held);
  if (first < least) least = first;
  int runs = first > 0 ? (int)(0.1 / first) : 200;
  runs = runs < 8 ? 8 : runs > 200 ? 200 : runs;
  for (int i = 0; i < runs && !failed; i++) {
    double s = row_s(e, &held);
    if (s < least) least = s;
  }
  release(&held);
  return failed ? -1 : least / e->calls;
}

static int ascending(const void *a, const void *b) { return *(double *)a < *(double *)b ? -1 : 1; }

static int agreeing(const entry_t *e, double found[2]) {
  double times[3] = {measure(e, 0), measure(e, 1024), 0};
  if (times[0] < 0 || times[1] < 0) return 0;
  qsort(times, 2, sizeof(double), ascending);
  if (times[1] > times[0] * 1.05) {
    times[2] = measure(e, 2048);
    if (times[2] < 0) return 0;
    qsort(times, 3, sizeof(double), ascending);
    if (times[1] / times[0] > times[2] / times[1]) times[0] = times[1], times[1] = times[2];
  }
  found[0] = times[0], found[1] = times[1];
  return 1;
}

/* Whether the results hold the row of an entry, whole. */
static int is_done(const char *written, const char *cells) {
  size_t length = strlen(cells);
  for (const char *at = written; at && *at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
    if (!strncmp(at, cells, length) && at[length] == ',' && strchr(at, '\n')) return 1;
  return 0;
}

/* One call of every kernel: the sum of its outputs and of their magnitudes, to compare processors with each other. */
static int check(void) {
  for (int i = 0; i < entry_count; i++) {
    entry_t once = entries[i];
    operands_t held;
    once.calls = 1;
    state = 1;
    if (!prepare(&once, &held, 0)) { fprintf(stderr, "not enough memory\n"); return 1; }
    row_s(&once, &held);
    if (failed) return 1;
    const operand_t *out = &once.operand[once.operands - 1];
    const float *values = held.tensors[once.operands - 1].data;
    double sum = 0, magnitude = 0;
    for (uint64_t e = 0; e < elements(out); e++) sum += values[e], magnitude += fabs(values[e]);
    printf("%s,%.6e,%.6e\n", once.cells, sum, magnitude);
    release(&held);
  }
  return 0;
}

int main(int count, char **arguments) {
  const char *path = count > 1 ? arguments[1] : "results.csv";
  char *written = calloc(1, 1);
  FILE *file;
  __TVMBackendAllocWorkspace = (void *)alloc_workspace;
  __TVMBackendFreeWorkspace = (void *)free_workspace;
  if (count > 1 && !strcmp(path, "--check")) return check();
  file = fopen(path, "r");
  if (file) {
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    written = realloc(written, size + 1);
    written[fread(written, 1, size, file)] = 0;
    fclose(file);
  }
  file = fopen(path, "a");
  if (!file) { fprintf(stderr, "%s cannot be written\n", path); return 1; }
  if (!*written) fprintf(file, "%s\n", table_header);
  else if (written[strlen(written) - 1] != '\n') fputc('\n', file);
  double canary = measure(&entries[0], 0);
  int skipped = 0;
  for (int i = 0; i < entry_count; i++) {
    double found[2];
    if (is_done(written, entries[i].cells)) continue;
    failed = 0;
    if (!agreeing(&entries[i], found)) {
      fprintf(stderr, "left out, for want of memory or as it failed: %s\n", entries[i].cells);
      skipped++;
      continue;
    }
    fprintf(file, "%s,%.6e,%.6e,measured\n", entries[i].cells, found[0], found[1]);
    if (i % 20 == 19) {
      double slower = measure(&entries[0], 0) / canary;
      if (slower > 1.1) fprintf(file, "# slower %.3f\n", slower);
    }
    fflush(file);
    fprintf(stderr, "\r%d of %d kernels", i + 1, entry_count);
  }
  fprintf(stderr, "\n%s: done%s\n", path, skipped ? ", with kernels left out" : "");
  fclose(file);
  return 0;
}
