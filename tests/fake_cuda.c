/* A CUDA driver and its management library without a GPU: what the real bindings are tested against.
 *
 * Built as libcuda.so.1 and libnvidia-ml.so.1. It keeps the documented state of each process id
 * below 1000 that it is asked about; others do not use CUDA. The last two digits say what becomes
 * of a lock: 01 is not ready, 02 sleeps for 300 ms first. What a call was given is written to the
 * file named by FAKE_CUDA_LOG.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, ILLEGAL_STATE = 401, NOT_READY = 600 };
enum { RUNNING = 0, LOCKED = 1, CHECKPOINTED = 2 };

typedef struct { unsigned char bytes[16]; } Uuid;
typedef struct { Uuid old_uuid, new_uuid; } Pair;
typedef struct { unsigned timeout_ms, zero; unsigned long long zeros[7]; } LockArgs;
typedef struct { Pair *pairs; unsigned count; } RestoreArgs;

static int states[1000], initialised;

static void note(const char *format, ...) {
    FILE *file = fopen(getenv("FAKE_CUDA_LOG"), "a");
    va_list rest;
    va_start(rest, format);
    vfprintf(file, format, rest);
    va_end(rest);
    fclose(file);
}

static int move(int pid, int from, int to) {
    if (pid >= 1000) return NOT_INITIALIZED;
    if (states[pid] != from) return ILLEGAL_STATE;
    states[pid] = to;
    return SUCCESS;
}

int cuInit(unsigned flags) {
    initialised = 1;
    return SUCCESS;
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &states;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) { return context == &states ? SUCCESS : INVALID_VALUE; }

int cuMemAlloc_v2(unsigned long long *place, size_t size) {
    *place = (unsigned long long)calloc(1, size);
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t size) {
    memcpy(to, (void *)from, size);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t size) {
    memcpy((void *)to, from, size);
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

int cuCheckpointProcessGetState(int pid, int *state) {
    if (pid >= 1000) return INVALID_VALUE;
    *state = states[pid];
    return SUCCESS;
}

int cuCheckpointProcessLock(int pid, LockArgs *args) {
    note("lock %d %u\n", pid, args->timeout_ms);
    if (pid % 100 == 1) return NOT_READY;
    if (pid % 100 == 2) usleep(300000);
    return move(pid, RUNNING, LOCKED);
}

int cuCheckpointProcessCheckpoint(int pid, void *args) {
    note("checkpoint %d %s\n", pid, args ? "args" : "none");
    return move(pid, LOCKED, CHECKPOINTED);
}

static void note_uuid(const Uuid *uuid) {
    for (int i = 0; i < 16; i++) note("%02x", uuid->bytes[i]);
}

int cuCheckpointProcessRestore(int pid, RestoreArgs *args) {
    note("restore %d init %d", pid, initialised);
    for (unsigned i = 0; args && i < args->count; i++) {
        note(" ");
        note_uuid(&args->pairs[i].old_uuid);
        note(">");
        note_uuid(&args->pairs[i].new_uuid);
    }
    note("\n");
    return move(pid, CHECKPOINTED, LOCKED);
}

int cuCheckpointProcessUnlock(int pid, void *args) {
    note("unlock %d\n", pid);
    return move(pid, LOCKED, RUNNING);
}

#define FIND(name) FIND_AS(name, name)
#define FIND_AS(name, actual) \
    if (!strcmp(symbol, #name)) { *function = (void *)actual; return SUCCESS; }

int cuGetProcAddress_v2(const char *symbol, void **function, int version,
                        unsigned long long flags, void *status) {
    FIND(cuInit)
    FIND(cuDriverGetVersion)
    FIND(cuDeviceGet)
    FIND(cuDevicePrimaryCtxRetain)
    FIND(cuCtxSetCurrent)
    FIND_AS(cuMemAlloc, cuMemAlloc_v2)
    FIND_AS(cuMemcpyDtoH, cuMemcpyDtoH_v2)
    FIND_AS(cuMemcpyHtoD, cuMemcpyHtoD_v2)
    FIND(cuCheckpointProcessGetState)
    FIND(cuCheckpointProcessLock)
    FIND(cuCheckpointProcessCheckpoint)
    FIND(cuCheckpointProcessRestore)
    FIND(cuCheckpointProcessUnlock)
    *function = NULL;
    return 500;
}

/* --- the management library ------------------------------------------------------------------ */

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "580.95.05");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(long)(index + 1);
    return 0;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    snprintf(text, length, "GPU-0000000%ld-0000-0000-0000-000000000000", (long)handle);
    return 0;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    *handle = (void *)(long)(uuid[11] - '0');
    return (long)*handle == 1 || (long)*handle == 2 ? 0 : 6; /* not found */
}

typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;
typedef struct { unsigned pid; unsigned long long at; unsigned sm, memory, encodes, decodes; } Sample;
enum { NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

/* On the first GPU are processes 11, 12 and 13; on the second, which does not count by process, 21. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *found) {
    unsigned have = (long)handle == 1 ? 3 : 1, room = *count;
    *count = have;
    if (room < have) return TOO_SMALL;
    for (unsigned i = 0; i < have; i++) found[i] = (Process){(long)handle * 10 + 1 + i, 1 << 20};
    return 0;
}

/* 11 computed at 100, and 12 at 200. */
int nvmlDeviceGetProcessUtilization(void *handle, Sample *found, unsigned *count,
                                    unsigned long long since) {
    Sample all[] = {{11, 100, 40}, {12, 200, 0, 7}, {13, 200}};
    if ((long)handle != 1) return NOT_SUPPORTED;
    if (since >= 200) return NOT_FOUND;
    if (!found) { *count = 3; return TOO_SMALL; }
    memcpy(found, all, sizeof all);
    return 0;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    rates[0] = getenv("FAKE_CUDA_BUSY") ? 30 : 0;
    return 0;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    snprintf(text, length, "NVIDIA H100");
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    memory->total = 80ull << 30;
    memory->used = (long)handle << 30;
    memory->free = memory->total - memory->used;
    return 0;
}
