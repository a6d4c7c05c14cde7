// libcuda.so.1 without a GPU, for tests: kernels run on the CPU (kernels.cpp), and everything a program may not rely on
// goes wrong on purpose. Work on streams is put off until something waits for it, device memory is apart from the
// program's and ends at a trap, fresh memory is not zero. Behaviour is set by the environment; tests/it/cuda says how.

#include "machine.h"

extern "C" int elo_host_launch(const char* name, unsigned grid, unsigned block, void** parameters);

#define API extern "C" __attribute__((visibility("default"))) int

enum Needs { NOTHING, INITIALISED, CONTEXT };

namespace {

// Never destroyed: threads may still be at work when the process ends.
Machine& machine() {
    static Machine* all = new Machine();
    return *all;
}

thread_local std::vector<Device*> current{nullptr};
thread_local const char* running = nullptr; // the kernel, for the trap

struct sigaction before[2];

void trapped(int signal, siginfo_t* info, void* context) {
    if (running) {
        char text[256];
        int length = snprintf(text, sizeof text, "fake CUDA: kernel %s touched %p outside its memory\n", running, info->si_addr);
        if (write(2, text, size_t(length)) < 0) {}
        std::signal(SIGABRT, SIG_DFL);
        abort();
    }
    const struct sigaction& old = before[signal == SIGBUS];
    if (old.sa_flags & SA_SIGINFO) {
        old.sa_sigaction(signal, info, context);
    } else {
        sigaction(signal, &old, nullptr);
    }
}

void set_traps() {
    struct sigaction action{};
    action.sa_sigaction = trapped;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
}

// Entry to the driver: one thread at a time; counts the call, refuses what the state or the test refuses.
struct Call {
    Machine& all = machine();
    std::unique_lock<std::mutex> held{all.lock};
    Device* device = current.back();
    int code;

    Call(const char* function, Needs needs) {
        code = all.count_call(function, device);
        if (code || needs == NOTHING) return;
        if (!all.initialised) code = NOT_INITIALIZED;
        if (code || needs != CONTEXT) return;
        if (!device) {
            code = INVALID_CONTEXT;
        } else if (!device->retained) {
            code = CONTEXT_IS_DESTROYED;
        } else {
            code = device->broken;
        }
    }

    // Null is the current context's null stream. Waiting on a stream may be asked for in any context, copies only in its own.
    std::shared_ptr<Stream> stream(void* handle) const {
        if (!handle) return device ? device->null_stream : nullptr;
        auto found = all.streams.find(handle);
        return found == all.streams.end() ? nullptr : found->second;
    }

    Event* event(void* handle) const {
        auto found = all.events.find(handle);
        return found == all.events.end() ? nullptr : found->second.get();
    }

    Device* numbered(int ordinal) const {
        bool exists = ordinal >= 0 && size_t(ordinal) < all.devices.size();
        return exists ? all.devices[size_t(ordinal)].get() : nullptr;
    }
};

#define ENTER(needs)                  \
    Call call(__func__, needs);       \
    if (call.code) return call.code;  \
    Machine& all = call.all;          \
    Device* device = call.device;     \
    (void)all;                        \
    (void)device

#define REQUIRE(condition, otherwise) \
    if (!(condition)) return otherwise

// Both ends are checked again when it happens: what was freed meanwhile is an illegal address.
int move_bytes(Device* device, Address to, Address from, size_t bytes, bool writes_device, bool reads_device) {
    for (auto [is_device, at] : {std::pair{writes_device, to}, std::pair{reads_device, from}}) {
        if (!is_device) continue;
        Allocation* found = device->holding(at, bytes);
        if (!found || !found->ready) return ILLEGAL_ADDRESS;
    }
    if (machine().latency) usleep(machine().latency);
    memmove((void*)to, (const void*)from, bytes);
    return SUCCESS;
}

bool valid(Device* device, Address at, size_t bytes) {
    Allocation* found = device->holding(at, bytes);
    return found && !found->leaving;
}

// The driver's rule: the source may be changed when the call returns, unless it is page-locked.
int to_device(Call& call, const std::shared_ptr<Stream>& stream, Address to, Address from, size_t bytes, bool synchronous) {
    REQUIRE(stream, INVALID_HANDLE);
    REQUIRE(stream->device == call.device, INVALID_VALUE);
    if (bytes == 0) return SUCCESS;
    Device* device = stream->device;
    int locked = call.all.locked(from, bytes);
    REQUIRE(from && locked >= 0 && valid(device, to, bytes), INVALID_VALUE);
    device->counts.to_device += bytes;
    device->counts.to_device_locked += locked ? bytes : 0;
    auto run = [=] { return move_bytes(device, to, from, bytes, true, false); };
    call.all.enqueue(stream, {run, nullptr, from, bytes, true});
    return locked && !synchronous ? int(SUCCESS) : call.all.finish(stream);
}

int to_host(Call& call, const std::shared_ptr<Stream>& stream, Address to, Address from, size_t bytes, bool synchronous) {
    REQUIRE(stream, INVALID_HANDLE);
    REQUIRE(stream->device == call.device, INVALID_VALUE);
    if (bytes == 0) return SUCCESS;
    Device* device = stream->device;
    int locked = call.all.locked(to, bytes);
    REQUIRE(to && locked >= 0 && valid(device, from, bytes), INVALID_VALUE);
    device->counts.to_host += bytes;
    device->counts.to_host_locked += locked ? bytes : 0;
    auto run = [=] { return move_bytes(device, to, from, bytes, false, true); };
    // Who looks before waiting shall not see what was there before.
    if (locked && !synchronous && !call.all.is_read_by_pending(to, bytes)) memset((void*)to, STALE, bytes);
    call.all.enqueue(stream, {run, nullptr, 0, 0, true});
    return locked && !synchronous ? int(SUCCESS) : call.all.finish(stream);
}

int within_device(Call& call, const std::shared_ptr<Stream>& stream, Address to, Address from, size_t bytes) {
    REQUIRE(stream, INVALID_HANDLE);
    if (bytes == 0) return SUCCESS;
    Device* device = stream->device;
    REQUIRE(valid(device, to, bytes) && valid(device, from, bytes), INVALID_VALUE);
    auto run = [=] { return move_bytes(device, to, from, bytes, true, true); };
    call.all.enqueue(stream, {run, nullptr, 0, 0, true});
    return SUCCESS;
}

int fill(Call& call, const std::shared_ptr<Stream>& stream, Address to, unsigned char value, size_t bytes) {
    REQUIRE(stream, INVALID_HANDLE);
    if (bytes == 0) return SUCCESS;
    Device* device = stream->device;
    REQUIRE(valid(device, to, bytes), INVALID_VALUE);
    device->counts.memsets++;
    auto run = [=] {
        Allocation* found = device->holding(to, bytes);
        if (!found || !found->ready) return int(ILLEGAL_ADDRESS);
        memset((void*)to, value, bytes);
        return int(SUCCESS);
    };
    call.all.enqueue(stream, {run, nullptr, 0, 0, true});
    return SUCCESS;
}

// What is freed on streams comes back before memory runs out.
bool has_room(Machine& all, Device* device, size_t bytes) {
    if (bytes > device->memory - device->used) all.finish(device);
    return bytes <= device->memory - device->used;
}

} // namespace

// --- Errors, start, devices

API cuGetErrorName(int code, const char** name) {
    const ErrorText* found = error_text(code);
    *name = found ? found->name : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

API cuGetErrorString(int code, const char** text) {
    const ErrorText* found = error_text(code);
    *text = found ? found->text : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

API cuInit(unsigned flags) {
    ENTER(NOTHING);
    if (size_t code = number("FAKE_CUDA_INIT", "0")) return int(code);
    REQUIRE(flags == 0, INVALID_VALUE);
    REQUIRE(!all.devices.empty(), NO_DEVICE);
    if (!all.initialised) set_traps();
    all.initialised = true;
    return SUCCESS;
}

API cuDriverGetVersion(int* version) {
    ENTER(NOTHING);
    *version = all.version;
    return SUCCESS;
}

API cuDeviceGetCount(int* count) {
    ENTER(INITIALISED);
    *count = int(all.devices.size());
    return SUCCESS;
}

API cuDeviceGet(int* found, int ordinal) {
    ENTER(INITIALISED);
    REQUIRE(call.numbered(ordinal), INVALID_DEVICE);
    *found = ordinal;
    return SUCCESS;
}

API cuDeviceGetName(char* name, int length, int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    snprintf(name, size_t(length), "Fake GPU %d", asked->physical);
    return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t* bytes, int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    *bytes = asked->memory;
    return SUCCESS;
}

static int uuid(unsigned char* bytes, Device* asked) {
    REQUIRE(asked, INVALID_DEVICE);
    memcpy(bytes, "fake CUDA GPU ", 14);
    bytes[14] = (unsigned char)(asked->physical >> 8);
    bytes[15] = (unsigned char)asked->physical;
    return SUCCESS;
}

API cuDeviceGetUuid(unsigned char* bytes, int ordinal) {
    ENTER(INITIALISED);
    return uuid(bytes, call.numbered(ordinal));
}

API cuDeviceGetUuid_v2(unsigned char* bytes, int ordinal) {
    ENTER(INITIALISED);
    return uuid(bytes, call.numbered(ordinal));
}

API cuDeviceGetPCIBusId(char* text, int length, int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    snprintf(text, size_t(length), "0000:%02X:00.0", asked->physical + 1);
    return SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    REQUIRE(attribute > 0 && attribute < 150, INVALID_VALUE);
    static const std::map<int, int> fixed = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536},
        {10, 32}, {12, 65536}, {13, 1980000}, {15, 1}, {16, 4}, {19, 1}, {31, 1}, {32, 1}, {36, 2619000},
        {37, 6144}, {38, 62914560}, {39, 2048}, {40, 3}, {41, 1}, {78, 1}, {81, 233472}, {82, 65536}, {83, 1},
        {97, 232448}};
    switch (attribute) {
        case 33: *value = asked->physical + 1; break; // the PCI bus
        case 75: *value = asked->capability / 10; break;
        case 76: *value = asked->capability % 10; break;
        case 115: *value = asked->pools; break;
        default: *value = fixed.count(attribute) ? fixed.at(attribute) : 0;
    }
    return SUCCESS;
}

// --- Contexts: a device's primary one, whose handle is the device

API cuDevicePrimaryCtxRetain(void** context, int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    asked->retained++;
    *context = asked;
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    REQUIRE(asked->retained > 0, INVALID_CONTEXT);
    if (--asked->retained == 0) all.destroy(asked);
    return SUCCESS;
}

API cuDevicePrimaryCtxGetState(int ordinal, unsigned* flags, int* active) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    *flags = 0;
    *active = asked->retained > 0;
    return SUCCESS;
}

API cuDevicePrimaryCtxSetFlags_v2(int ordinal, unsigned) {
    ENTER(INITIALISED);
    return call.numbered(ordinal) ? SUCCESS : INVALID_DEVICE;
}

static Device* as_context(Call& call, void* handle) {
    for (auto& device : call.all.devices) {
        if (device.get() == handle && device->retained) return device.get();
    }
    return nullptr;
}

API cuCtxSetCurrent(void* context) {
    ENTER(INITIALISED);
    Device* asked = as_context(call, context);
    REQUIRE(asked || !context, INVALID_CONTEXT);
    current.back() = asked;
    return SUCCESS;
}

API cuCtxGetCurrent(void** context) {
    ENTER(INITIALISED);
    *context = device;
    return SUCCESS;
}

API cuCtxPushCurrent_v2(void* context) {
    ENTER(INITIALISED);
    Device* asked = as_context(call, context);
    REQUIRE(asked, INVALID_CONTEXT);
    current.push_back(asked);
    return SUCCESS;
}

API cuCtxPopCurrent_v2(void** context) {
    ENTER(INITIALISED);
    REQUIRE(device, INVALID_CONTEXT);
    if (context) *context = device;
    current.pop_back();
    if (current.empty()) current.push_back(nullptr);
    return SUCCESS;
}

API cuCtxGetDevice(int* ordinal) {
    ENTER(CONTEXT);
    *ordinal = device->ordinal;
    return SUCCESS;
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER(CONTEXT);
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return SUCCESS;
}

API cuCtxSynchronize() {
    ENTER(CONTEXT);
    return all.finish(device);
}

// --- Streams

static int create_stream(Call& call, void** handle, unsigned flags) {
    REQUIRE(flags <= 1, INVALID_VALUE);
    *handle = call.all.new_stream(call.device, flags == 0).get();
    return SUCCESS;
}

API cuStreamCreate(void** handle, unsigned flags) {
    ENTER(CONTEXT);
    return create_stream(call, handle, flags);
}

API cuStreamCreateWithPriority(void** handle, unsigned flags, int) {
    ENTER(CONTEXT);
    return create_stream(call, handle, flags);
}

API cuStreamDestroy_v2(void* handle) {
    ENTER(CONTEXT);
    // What is queued still happens.
    return all.streams.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuStreamGetCtx(void* handle, void** context) {
    ENTER(CONTEXT);
    auto stream = call.stream(handle);
    REQUIRE(stream, INVALID_HANDLE);
    *context = stream->device;
    return SUCCESS;
}

API cuStreamSynchronize(void* handle) {
    ENTER(INITIALISED);
    auto stream = call.stream(handle);
    REQUIRE(stream, handle ? INVALID_HANDLE : INVALID_CONTEXT);
    return all.finish(stream);
}

// The first question sets the work going, the next one finds it done.
API cuStreamQuery(void* handle) {
    ENTER(INITIALISED);
    auto stream = call.stream(handle);
    REQUIRE(stream, handle ? INVALID_HANDLE : INVALID_CONTEXT);
    bool idle = stream->queue.empty();
    int code = all.finish(stream);
    return code || idle ? code : int(NOT_READY);
}

API cuStreamWaitEvent(void* handle, void* event, unsigned flags) {
    ENTER(CONTEXT);
    auto stream = call.stream(handle);
    Event* found = call.event(event);
    REQUIRE(stream && found, INVALID_HANDLE);
    REQUIRE(flags <= 1, INVALID_VALUE);
    all.wait_event(stream, *found);
    return SUCCESS;
}

// --- Events

API cuEventCreate(void** handle, unsigned flags) {
    ENTER(CONTEXT);
    REQUIRE(flags < 8, INVALID_VALUE);
    auto event = std::make_unique<Event>(Event{device, !(flags & 2), nullptr});
    *handle = event.get();
    all.events[*handle] = std::move(event);
    device->counts.events++;
    return SUCCESS;
}

API cuEventDestroy_v2(void* handle) {
    ENTER(CONTEXT);
    return all.events.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuEventRecord(void* handle, void* stream_handle) {
    ENTER(CONTEXT);
    Event* event = call.event(handle);
    auto stream = call.stream(stream_handle);
    REQUIRE(event && stream && event->device == stream->device, INVALID_HANDLE);
    all.record(*event, stream);
    return SUCCESS;
}

API cuEventSynchronize(void* handle) {
    ENTER(INITIALISED);
    Event* event = call.event(handle);
    REQUIRE(event, INVALID_HANDLE);
    if (!event->mark) return event->device->broken;
    auto mark = event->mark;
    return all.finish(mark->stream, mark->sequence);
}

API cuEventQuery(void* handle) {
    ENTER(INITIALISED);
    Event* event = call.event(handle);
    REQUIRE(event, INVALID_HANDLE);
    if (!event->mark || event->mark->done()) return event->device->broken;
    auto mark = event->mark;
    int code = all.finish(mark->stream, mark->sequence);
    return code ? code : int(NOT_READY);
}

static int elapsed(Call& call, float* milliseconds, void* start, void* end) {
    Event *first = call.event(start), *last = call.event(end);
    REQUIRE(first && last && first->timed && last->timed && first->mark && last->mark, INVALID_HANDLE);
    REQUIRE(first->mark->done() && last->mark->done(), NOT_READY);
    auto span = last->mark->passed - first->mark->passed;
    *milliseconds = std::chrono::duration<float, std::milli>(span).count();
    return SUCCESS;
}

API cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    ENTER(CONTEXT);
    return elapsed(call, milliseconds, start, end);
}

API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    ENTER(CONTEXT);
    return elapsed(call, milliseconds, start, end);
}

// --- Memory

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER(CONTEXT);
    *free = device->memory - device->used;
    *total = device->memory;
    return SUCCESS;
}

API cuMemAlloc_v2(Address* start, size_t bytes) {
    ENTER(CONTEXT);
    REQUIRE(bytes > 0, INVALID_VALUE);
    REQUIRE(has_room(all, device, bytes), device->broken ? device->broken : int(OUT_OF_MEMORY));
    *start = device->allocate(bytes);
    REQUIRE(*start, OUT_OF_MEMORY);
    return device->make_ready(*start);
}

// Ready when the stream comes to it: another stream has to wait for that.
API cuMemAllocAsync(Address* start, size_t bytes, void* handle) {
    ENTER(CONTEXT);
    auto stream = call.stream(handle);
    REQUIRE(stream, INVALID_HANDLE);
    Device* owner = stream->device;
    REQUIRE(owner->pools, NOT_SUPPORTED);
    *start = 0;
    if (bytes == 0) return SUCCESS;
    REQUIRE(has_room(all, owner, bytes), owner->broken ? owner->broken : int(OUT_OF_MEMORY));
    Address at = *start = owner->allocate(bytes);
    REQUIRE(at, OUT_OF_MEMORY);
    all.enqueue(stream, {[=] { return owner->make_ready(at); }, nullptr});
    return SUCCESS;
}

API cuMemFree_v2(Address start) {
    ENTER(CONTEXT);
    if (start == 0) return SUCCESS;
    auto found = device->allocations.find(start);
    REQUIRE(found != device->allocations.end() && !found->second.leaving, INVALID_VALUE);
    if (int code = all.finish(device)) return code;
    device->release(start);
    return SUCCESS;
}

API cuMemFreeAsync(Address start, void* handle) {
    ENTER(CONTEXT);
    auto stream = call.stream(handle);
    REQUIRE(stream, INVALID_HANDLE);
    Device* owner = stream->device;
    REQUIRE(owner->pools, NOT_SUPPORTED);
    if (start == 0) return SUCCESS;
    auto found = owner->allocations.find(start);
    REQUIRE(found != owner->allocations.end() && !found->second.leaving, INVALID_VALUE);
    found->second.leaving = true;
    all.enqueue(stream, {[=] { return owner->release(start), SUCCESS; }, nullptr});
    return SUCCESS;
}

API cuMemHostAlloc(void** start, size_t bytes, unsigned flags) {
    ENTER(CONTEXT);
    REQUIRE(bytes > 0 && flags < 8, INVALID_VALUE);
    REQUIRE(all.host_used <= all.host_limit && bytes <= all.host_limit - all.host_used, OUT_OF_MEMORY);
    size_t mapped = rounded(bytes, PAGE) + PAGE;
    void* pages = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(pages != MAP_FAILED, OUT_OF_MEMORY);
    memset(pages, FRESH, mapped - PAGE);
    mprotect((char*)pages + mapped - PAGE, PAGE, PROT_NONE);
    all.host[Address(pages)] = HostMemory{device, bytes, (unsigned char*)pages, mapped};
    all.host_used += bytes;
    all.host_peak = std::max<uint64_t>(all.host_peak, all.host_used);
    all.host_allocations++;
    *start = pages;
    return SUCCESS;
}

static int unlock_host(Call& call, void* start, bool allocated, int otherwise) {
    auto found = call.all.host.find(Address(start));
    REQUIRE(found != call.all.host.end() && (found->second.pages != nullptr) == allocated, otherwise);
    for (auto& device : call.all.devices) call.all.finish(device.get());
    if (allocated) munmap(found->second.pages, found->second.mapped);
    call.all.host_used -= found->second.bytes;
    call.all.host_frees++;
    call.all.host.erase(found);
    return SUCCESS;
}

API cuMemFreeHost(void* start) {
    ENTER(CONTEXT);
    return unlock_host(call, start, true, INVALID_VALUE);
}

API cuMemHostRegister_v2(void* start, size_t bytes, unsigned) {
    ENTER(CONTEXT);
    REQUIRE(start && bytes > 0, INVALID_VALUE);
    REQUIRE(all.locked(Address(start), bytes) == 0, HOST_MEMORY_ALREADY_REGISTERED);
    REQUIRE(all.host_used <= all.host_limit && bytes <= all.host_limit - all.host_used, OUT_OF_MEMORY);
    all.host[Address(start)] = HostMemory{device, bytes, nullptr, 0};
    all.host_used += bytes;
    all.host_peak = std::max<uint64_t>(all.host_peak, all.host_used);
    all.host_allocations++;
    return SUCCESS;
}

API cuMemHostUnregister(void* start) {
    ENTER(CONTEXT);
    return unlock_host(call, start, false, HOST_MEMORY_NOT_REGISTERED);
}

API cuMemHostGetDevicePointer_v2(Address* found, void* start, unsigned) {
    ENTER(CONTEXT);
    REQUIRE(all.locked(Address(start), 1) == 1, INVALID_VALUE);
    *found = Address(start);
    return SUCCESS;
}

API cuPointerGetAttribute(void* value, int attribute, Address pointer) {
    ENTER(CONTEXT);
    Device* owner = nullptr;
    Address start = 0;
    size_t bytes = 0;
    for (auto& each : all.devices) {
        auto next = each->allocations.upper_bound(pointer);
        if (next == each->allocations.begin() || pointer - (--next)->first >= next->second.bytes) continue;
        owner = each.get(), start = next->first, bytes = next->second.bytes;
    }
    bool locked = all.locked(pointer, 1) == 1;
    REQUIRE(owner || locked, INVALID_VALUE);
    if (locked) {
        auto found = std::prev(all.host.upper_bound(pointer));
        start = found->first, bytes = found->second.bytes;
    }
    switch (attribute) {
        case 1: *(void**)value = owner ? owner : device; break;
        case 2: *(unsigned*)value = locked ? 1 : 2; break;
        case 3: *(Address*)value = pointer; break;
        case 4:
            REQUIRE(locked, INVALID_VALUE);
            *(Address*)value = pointer;
            break;
        case 8: *(unsigned*)value = 0; break;
        case 9: *(int*)value = (owner ? owner : device)->ordinal; break;
        case 11: *(Address*)value = start; break;
        case 12: *(size_t*)value = bytes; break;
        default: return NOT_SUPPORTED;
    }
    return SUCCESS;
}

API cuDeviceGetDefaultMemPool(void** pool, int ordinal) {
    ENTER(INITIALISED);
    Device* asked = call.numbered(ordinal);
    REQUIRE(asked, INVALID_DEVICE);
    REQUIRE(asked->pools, NOT_SUPPORTED);
    *pool = asked;
    return SUCCESS;
}

API cuDeviceGetMemPool(void** pool, int ordinal) { return cuDeviceGetDefaultMemPool(pool, ordinal); }

API cuMemPoolSetAttribute(void*, int, void*) {
    ENTER(INITIALISED);
    return SUCCESS;
}

API cuMemPoolTrimTo(void*, size_t) {
    ENTER(INITIALISED);
    return SUCCESS;
}

// --- Copies. Those without a stream are the null stream's.

API cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    ENTER(CONTEXT);
    return to_device(call, device->null_stream, to, Address(from), bytes, true);
}

API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    ENTER(CONTEXT);
    return to_device(call, call.stream(stream), to, Address(from), bytes, false);
}

API cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    ENTER(CONTEXT);
    return to_host(call, device->null_stream, Address(to), from, bytes, true);
}

API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    ENTER(CONTEXT);
    return to_host(call, call.stream(stream), Address(to), from, bytes, false);
}

API cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    ENTER(CONTEXT);
    return within_device(call, device->null_stream, to, from, bytes);
}

API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    ENTER(CONTEXT);
    return within_device(call, call.stream(stream), to, from, bytes);
}

API cuMemsetD8_v2(Address to, unsigned char value, size_t bytes) {
    ENTER(CONTEXT);
    return fill(call, device->null_stream, to, value, bytes);
}

API cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* stream) {
    ENTER(CONTEXT);
    return fill(call, call.stream(stream), to, value, bytes);
}

// --- Modules and launches

static int load(Call& call, void** handle, const char* image) {
    REQUIRE(image, INVALID_VALUE);
    auto module = std::make_unique<Module>();
    module->device = call.device;
    if (int code = module->ptx.load(image, call.all.version, call.device->capability)) return code;
    *handle = module.get();
    call.all.modules[*handle] = std::move(module);
    return SUCCESS;
}

API cuModuleLoadData(void** handle, const void* image) {
    ENTER(CONTEXT);
    return load(call, handle, (const char*)image);
}

API cuModuleLoadDataEx(void** handle, const void* image, unsigned options, const int* names, void** values) {
    ENTER(CONTEXT);
    int code = load(call, handle, (const char*)image);
    char* log = nullptr;
    size_t size = 0;
    for (unsigned i = 0; i < options; i++) {
        if (names[i] == 5) log = (char*)values[i];
        if (names[i] == 6) size = size_t(values[i]);
    }
    if (log && size) snprintf(log, size, "%s", code ? "ptxas fatal : fake CUDA refuses this PTX" : "");
    return code;
}

API cuModuleUnload(void* handle) {
    ENTER(CONTEXT);
    auto found = all.modules.find(handle);
    REQUIRE(found != all.modules.end(), INVALID_HANDLE);
    for (auto at = all.functions.begin(); at != all.functions.end();) {
        at = at->second->module == handle ? all.functions.erase(at) : std::next(at);
    }
    all.modules.erase(found);
    return SUCCESS;
}

API cuModuleGetFunction(void** handle, void* module, const char* name) {
    ENTER(CONTEXT);
    auto found = all.modules.find(module);
    REQUIRE(found != all.modules.end(), INVALID_HANDLE);
    auto entry = found->second->ptx.entries.find(name);
    REQUIRE(entry != found->second->ptx.entries.end(), NOT_FOUND);
    // No blocks: only whether the kernel is there.
    REQUIRE(elo_host_launch(name, 0, 256, nullptr) == SUCCESS, NOT_FOUND);
    auto function = std::make_unique<Function>(Function{found->second.get(), name, entry->second});
    *handle = function.get();
    all.functions[*handle] = std::move(function);
    return SUCCESS;
}

static Function* function_of(Call& call, void* handle) {
    auto found = call.all.functions.find(handle);
    return found == call.all.functions.end() ? nullptr : found->second.get();
}

API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    ENTER(CONTEXT);
    Function* function = function_of(call, handle);
    REQUIRE(function, INVALID_HANDLE);
    REQUIRE(attribute >= 0 && attribute < 16, INVALID_VALUE);
    switch (attribute) {
        case 0: *value = int(function->entry.threads); break;
        case 4: *value = 32; break; // registers
        case 5: *value = 80; break; // PTX
        case 6: *value = device->capability; break;
        default: *value = 0;
    }
    return SUCCESS;
}

API cuFuncSetAttribute(void* handle, int, int) {
    ENTER(CONTEXT);
    return function_of(call, handle) ? SUCCESS : INVALID_HANDLE;
}

API cuFuncSetCacheConfig(void* handle, int) {
    ENTER(CONTEXT);
    return function_of(call, handle) ? SUCCESS : INVALID_HANDLE;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t) {
    ENTER(CONTEXT);
    REQUIRE(function_of(call, handle), INVALID_HANDLE);
    REQUIRE(threads > 0, INVALID_VALUE);
    *blocks = threads > 1024 ? 0 : 2048 / threads;
    return SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* handle, int threads, size_t, unsigned) {
    ENTER(CONTEXT);
    REQUIRE(function_of(call, handle), INVALID_HANDLE);
    REQUIRE(threads > 0, INVALID_VALUE);
    *blocks = threads > 1024 ? 0 : 2048 / threads;
    return SUCCESS;
}

API cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, void* handle, size_t (*)(int), size_t, int, unsigned) {
    ENTER(CONTEXT);
    Function* function = function_of(call, handle);
    REQUIRE(function, INVALID_HANDLE);
    *block = int(function->entry.threads);
    *grid = 4 * 2048 / *block;
    return SUCCESS;
}

// A word of the parameters that is an address of another device would fault there. The last word of each struct has dtypes,
// flags and padding, which may hold anything.
static void check_parameters(Call& call, const Function& function, const std::vector<std::vector<char>>& values) {
    for (auto& value : values) {
        for (size_t at = 0; at + 16 <= value.size(); at += 8) {
            Address word;
            memcpy(&word, &value[at], 8);
            for (auto& other : call.all.devices) {
                if (other.get() != call.device && other->owns(word)) {
                    die("kernel " + function.name + " was handed memory of another device");
                }
            }
        }
    }
}

API cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream_handle, void** parameters, void** extra) {
    ENTER(CONTEXT);
    Function* function = function_of(call, handle);
    auto stream = call.stream(stream_handle);
    REQUIRE(function && stream, INVALID_HANDLE);
    REQUIRE(stream->device == device && function->module->device == device, INVALID_CONTEXT);
    bool shaped = grid_x && grid_y && grid_z && block_x && block_y && block_z && grid_x <= 2147483647 && grid_y <= 65535 && grid_z <= 65535;
    REQUIRE(shaped && uint64_t(block_x) * block_y * block_z <= 1024 && shared <= 49152, INVALID_VALUE);
    REQUIRE(block_x * block_y * block_z <= function->entry.threads, LAUNCH_OUT_OF_RESOURCES);
    REQUIRE(!extra, NOT_SUPPORTED);
    if (grid_y * grid_z * block_y * block_z != 1 || shared) die("grids of one dimension without dynamic shared memory only");
    std::vector<std::vector<char>> values;
    for (size_t i = 0; i < function->entry.parameters.size(); i++) {
        REQUIRE(parameters && parameters[i], INVALID_VALUE);
        auto* first = (const char*)parameters[i];
        values.emplace_back(first, first + function->entry.parameters[i]);
    }
    check_parameters(call, *function, values);
    device->counts.launches[function->name]++;
    uint64_t& blocks = device->counts.blocks[function->name];
    blocks = std::max<uint64_t>(blocks, grid_x);
    auto run = [name = function->name, grid_x, block_x, values]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(value.data());
        running = name.c_str();
        int code = elo_host_launch(name.c_str(), grid_x, block_x, pointers.data());
        running = nullptr;
        return code;
    };
    all.enqueue(stream, {run, nullptr, 0, 0, true});
    return SUCCESS;
}

// --- The record, for tests

__attribute__((destructor)) static void write_log() {
    Machine& all = machine();
    const char* path = getenv("FAKE_CUDA_LOG");
    std::unique_lock<std::mutex> held(all.lock, std::try_to_lock);
    if (!path || all.calls.empty() || !held) return;
    FILE* out = fopen(path, "w");
    if (!out) return;
    all.write_log(out);
    fclose(out);
}
