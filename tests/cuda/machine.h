// What stands behind the driver's functions: devices with memory of their own, streams whose work is put off until
// something waits for it, and the record of all that happened.
//
// The environment says what machine it is; values in brackets are those it has otherwise, (*) takes one value a GPU, by commas:
//   FAKE_CUDA_DEVICES      GPUs [1]; CUDA_VISIBLE_DEVICES hides and orders them, as ever
//   FAKE_CUDA_DRIVER       the driver's CUDA version [12000]
//   FAKE_CUDA_CAPABILITY   compute capability [9.0] (*)
//   FAKE_CUDA_MEMORY       bytes of a GPU [1073741824] (*)
//   FAKE_CUDA_POOLS        whether it allocates in the order of streams [1] (*)
//   FAKE_CUDA_HOST_MEMORY  bytes of the host that may be page-locked [all]
//   FAKE_CUDA_INIT         what cuInit gives [0]
//   FAKE_CUDA_FAIL         FUNCTION:N:CODE,...: call N of a function gives this error; N+: and those after it;
//                          FUNCTION@GPU: only calls while that GPU's context is current
//   FAKE_CUDA_ORDER        when work is done: `lazy`, not before it is waited for [lazy]; `eager`, other streams first; a number,
//                          by chance with this seed
//   FAKE_CUDA_LATENCY_US   microseconds of a copy [0]
//   FAKE_CUDA_LOG          file for the record, one JSON object, written when the process ends
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "errors.h"
#include "ptx.h"

using Address = unsigned long long;

static const size_t PAGE = 4096;
static const unsigned char FRESH = 0xa5;  // memory nobody has written
static const unsigned char STALE = 0xdb;  // host memory whose copy is on its way

static inline size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

[[noreturn]] static inline void die(const std::string& text) {
    std::string line = "fake CUDA: " + text + "\n";
    if (write(2, line.data(), line.size()) < 0) {}
    abort();
}

static inline std::string hex(Address address) {
    char text[32];
    snprintf(text, sizeof text, "0x%llx", address);
    return text;
}

// An environment variable; a list holds one value a device, of which the last stands for all that follow.
static inline std::string knob(const char* name, const char* otherwise, size_t device = 0) {
    const char* set = getenv(name);
    std::istringstream list(set && *set ? set : otherwise);
    std::string item;
    for (size_t i = 0; i <= device && std::getline(list, item, ','); i++) {}
    return item;
}

static inline size_t number(const char* name, const char* otherwise, size_t device = 0) {
    return strtoull(knob(name, otherwise, device).c_str(), nullptr, 10);
}

struct Stream;
struct Device;

// A point in a stream's work. Done when the stream has come that far.
struct Mark {
    std::shared_ptr<Stream> stream;
    uint64_t sequence;
    std::chrono::steady_clock::time_point passed;
    bool done() const;
};

struct Work {
    std::function<int()> run;
    std::shared_ptr<Mark> waits; // for a point of another stream
    Address reads = 0;           // page-locked memory that is read
    size_t bytes = 0;
    bool moves_data = false; // a copy, a memset or a kernel
};

struct Stream {
    Device* device;
    bool blocking; // with respect to the null stream
    std::deque<Work> queue;
    uint64_t queued = 0, executed = 0;
};

inline bool Mark::done() const { return stream->executed >= sequence; }

struct Event {
    Device* device;
    bool timed;
    std::shared_ptr<Mark> mark; // none before the first record
};

struct Allocation {
    size_t bytes;
    unsigned char* pages;
    size_t mapped;
    bool ready;   // the stream it was asked for on has come to it
    bool leaving; // freed on a stream that has not come to it
};

struct HostMemory {
    Device* device; // whose context it was made in
    size_t bytes;
    unsigned char* pages; // none: registered, not allocated
    size_t mapped;
};

struct Module {
    Device* device;
    Ptx ptx;
};

struct Function {
    Module* module;
    std::string name;
    Entry entry;
};

struct Counts {
    uint64_t peak = 0, allocations = 0, frees = 0, to_device = 0, to_host = 0, to_device_locked = 0, to_host_locked = 0;
    uint64_t memsets = 0, streams = 0, most_streams = 0, events = 0, lost = 0, lost_bytes = 0;
    // Of each kernel: how often it was launched, and the most blocks it was launched with.
    std::map<std::string, uint64_t> launches, blocks;
};

struct Device {
    int ordinal, physical;
    int capability;
    size_t memory; // bytes it has
    bool pools;
    int retained = 0;
    int broken = 0; // the sticky error
    size_t used = 0;
    std::map<Address, Allocation> allocations;
    std::vector<std::pair<Address, size_t>> arenas;
    size_t arena_used = 0;
    std::shared_ptr<Stream> null_stream;
    Counts counts;

    bool owns(Address address) const {
        for (auto& arena : arenas) {
            if (address >= arena.first && address < arena.first + arena.second) return true;
        }
        return false;
    }

    // The allocation that holds all of a range.
    Allocation* holding(Address start, size_t bytes) {
        auto next = allocations.upper_bound(start);
        if (next == allocations.begin()) return nullptr;
        auto& found = *--next;
        size_t offset = start - found.first;
        bool inside = offset <= found.second.bytes && bytes <= found.second.bytes - offset;
        return inside ? &found.second : nullptr;
    }

    // Addresses are never used twice: what is freed stays unmapped.
    unsigned char* reserve(size_t bytes) {
        if (arenas.empty() || arenas.back().second - arena_used < bytes) {
            size_t chunk = std::max(bytes, size_t(64) << 30);
            void* at;
            while ((at = mmap(nullptr, chunk, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) ==
                   MAP_FAILED) {
                if (chunk == bytes) return nullptr;
                chunk = std::max(bytes, chunk / 4);
            }
            arenas.push_back({Address(at), chunk});
            arena_used = 0;
        }
        auto* pages = (unsigned char*)arenas.back().first + arena_used;
        arena_used += bytes;
        return pages;
    }

    // The end of the memory is the end of a page, as near as the alignment of 16 bytes allows; the next page is a trap.
    Address allocate(size_t bytes) {
        size_t mapped = rounded(bytes, PAGE) + PAGE;
        unsigned char* pages = reserve(mapped);
        if (!pages) return 0;
        Address start = Address(pages) + mapped - PAGE - rounded(bytes, 16);
        allocations[start] = Allocation{bytes, pages, mapped, false, false};
        used += bytes;
        counts.peak = std::max<uint64_t>(counts.peak, used);
        counts.allocations++;
        return start;
    }

    int make_ready(Address start) {
        Allocation& found = allocations.at(start);
        if (mprotect(found.pages, found.mapped - PAGE, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
        memset(found.pages, FRESH, found.mapped - PAGE);
        found.ready = true;
        return SUCCESS;
    }

    void release(Address start, bool asked = true) {
        Allocation& found = allocations.at(start);
        if (found.ready) check_edges(start, found);
        mmap(found.pages, found.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        used -= found.bytes;
        (asked ? counts.frees : counts.lost)++;
        if (!asked) counts.lost_bytes += found.bytes;
        allocations.erase(start);
    }

private:
    static void check_edges(Address start, const Allocation& found) {
        auto* first = (unsigned char*)start;
        auto* end = found.pages + found.mapped - PAGE;
        auto fresh = [](unsigned char byte) { return byte == FRESH; };
        if (!std::all_of(found.pages, first, fresh)) die("something wrote before the allocation at " + hex(start));
        if (!std::all_of(first + found.bytes, end, fresh)) die("something wrote behind the allocation at " + hex(start));
    }
};

// FUNCTION[@DEVICE]:N[+]:CODE
struct Failure {
    std::string function;
    int device;
    uint64_t from;
    bool onward;
    int code;
    uint64_t calls = 0;
};

class Machine {
public:
    std::mutex lock;
    bool initialised = false;
    int version;
    std::vector<std::unique_ptr<Device>> devices;
    std::map<Address, HostMemory> host;
    size_t host_used = 0, host_limit;
    uint64_t host_peak = 0, host_allocations = 0, host_frees = 0, host_lost = 0, host_lost_bytes = 0;
    std::map<void*, std::shared_ptr<Stream>> streams;
    std::map<void*, std::unique_ptr<Event>> events;
    std::map<void*, std::unique_ptr<Module>> modules;
    std::map<void*, std::unique_ptr<Function>> functions;
    std::map<std::string, uint64_t> calls;
    unsigned latency;

    Machine() {
        version = int(number("FAKE_CUDA_DRIVER", "12000"));
        latency = unsigned(number("FAKE_CUDA_LATENCY_US", "0"));
        host_limit = number("FAKE_CUDA_HOST_MEMORY", "18446744073709551615");
        size_t count = number("FAKE_CUDA_DEVICES", "1");
        for (int physical : visible(count)) {
            auto device = std::make_unique<Device>();
            device->ordinal = int(devices.size());
            device->physical = physical;
            std::string capability = knob("FAKE_CUDA_CAPABILITY", "9.0", size_t(physical));
            size_t dot = capability.find('.');
            int minor = dot == std::string::npos ? 0 : atoi(capability.c_str() + dot + 1);
            device->capability = atoi(capability.c_str()) * 10 + minor;
            device->memory = number("FAKE_CUDA_MEMORY", "1073741824", size_t(physical));
            device->pools = number("FAKE_CUDA_POOLS", "1", size_t(physical)) != 0;
            device->null_stream = std::make_shared<Stream>(Stream{device.get(), true, {}});
            working.push_back(device->null_stream);
            devices.push_back(std::move(device));
        }
        std::string order = knob("FAKE_CUDA_ORDER", "lazy");
        if (order == "eager") {
            others_first = true;
        } else if (order != "lazy") {
            shuffled = true;
            random.seed(strtoul(order.c_str(), nullptr, 10));
        }
        read_failures();
    }

    // The code of a failure that was asked for, or success.
    int count_call(const char* function, Device* device) {
        calls[function]++;
        for (Failure& failure : failures) {
            bool here = failure.function == function && (failure.device < 0 || (device && failure.device == device->ordinal));
            if (!here) continue;
            uint64_t call = ++failure.calls;
            if (call == failure.from || (failure.onward && call > failure.from)) {
                if (device && is_sticky(failure.code)) device->broken = failure.code;
                return failure.code;
            }
        }
        return SUCCESS;
    }

    std::shared_ptr<Stream> new_stream(Device* device, bool blocking) {
        auto stream = std::make_shared<Stream>(Stream{device, blocking, {}});
        streams[stream.get()] = stream;
        working.push_back(stream);
        device->counts.streams++;
        uint64_t now = 0;
        for (auto& other : streams) now += other.second->device == device;
        device->counts.most_streams = std::max(device->counts.most_streams, now);
        return stream;
    }

    // Puts work off until something waits for it.
    void enqueue(const std::shared_ptr<Stream>& stream, Work work) {
        Device* device = stream->device;
        // The null stream waits for the blocking ones and they for it.
        if (stream == device->null_stream) {
            for (auto& other : working) {
                if (other->device == device && other->blocking && other != stream) wait_for(stream, other);
            }
        } else if (stream->blocking) {
            wait_for(stream, device->null_stream);
        }
        push(stream, std::move(work));
        if (shuffled) stir();
    }

    void record(Event& event, const std::shared_ptr<Stream>& stream) {
        auto mark = std::make_shared<Mark>();
        event.mark = mark;
        enqueue(stream, {[mark] { return mark->passed = std::chrono::steady_clock::now(), SUCCESS; }, nullptr});
        *mark = {stream, stream->queued, mark->passed};
    }

    void wait_event(const std::shared_ptr<Stream>& stream, const Event& event) {
        if (event.mark) enqueue(stream, {nullptr, event.mark});
    }

    // Runs a stream up to a point, and whatever that point waits for.
    int finish(const std::shared_ptr<Stream>& target, uint64_t sequence) {
        if (others_first) {
            run_others(target.get());
        } else if (shuffled) {
            stir();
        }
        std::vector<std::pair<std::shared_ptr<Stream>, uint64_t>> stack{{target, sequence}};
        while (!stack.empty()) {
            auto [stream, until] = stack.back();
            if (stream->executed >= until) {
                stack.pop_back();
            } else if (auto& waits = stream->queue.front().waits; waits && !waits->done()) {
                stack.push_back({waits->stream, waits->sequence});
            } else {
                step(*stream);
            }
        }
        forget_idle();
        return target->device->broken;
    }

    int finish(const std::shared_ptr<Stream>& stream) { return finish(stream, stream->queued); }

    int finish(Device* device) {
        for (auto& stream : std::vector<std::shared_ptr<Stream>>(working)) {
            if (stream->device == device) finish(stream);
        }
        return device->broken;
    }

    // Whether a range of host memory is page-locked: 1 yes, 0 no, -1 in part.
    int locked(Address start, size_t bytes) const {
        auto next = host.upper_bound(start);
        if (next != host.end() && next->first < start + bytes) return -1;
        if (next == host.begin()) return 0;
        auto& found = *--next;
        size_t offset = start - found.first;
        if (offset >= found.second.bytes) return 0;
        return bytes <= found.second.bytes - offset ? 1 : -1;
    }

    bool is_read_by_pending(Address start, size_t bytes) const {
        for (auto& stream : working) {
            for (auto& work : stream->queue) {
                if (work.reads < start + bytes && start < work.reads + work.bytes) return true;
            }
        }
        return false;
    }

    // A context that ends takes everything with it.
    void destroy(Device* device) {
        finish(device);
        while (!device->allocations.empty()) device->release(device->allocations.begin()->first, false);
        for (auto at = host.begin(); at != host.end();) {
            HostMemory& memory = at->second;
            if (memory.device != device) {
                ++at;
                continue;
            }
            if (memory.pages) munmap(memory.pages, memory.mapped);
            host_used -= memory.bytes;
            host_lost++;
            host_lost_bytes += memory.bytes;
            at = host.erase(at);
        }
        auto drop = [&](auto& all, auto&& has) {
            for (auto at = all.begin(); at != all.end();) at = has(*at->second) ? all.erase(at) : std::next(at);
        };
        drop(functions, [&](Function& f) { return f.module->device == device; });
        drop(modules, [&](Module& m) { return m.device == device; });
        drop(events, [&](Event& e) { return e.device == device; });
        drop(streams, [&](Stream& s) { return s.device == device; });
    }

    void write_log(FILE* out) {
        fprintf(out, "{\"devices\": [");
        for (auto& device : devices) {
            const Counts& c = device->counts;
            fprintf(out, "%s{\"peak\": %llu, \"allocations\": %llu, \"frees\": %llu, \"htod\": %llu, \"dtoh\": %llu, ",
                    device->ordinal ? ", " : "", Address(c.peak), Address(c.allocations), Address(c.frees),
                    Address(c.to_device), Address(c.to_host));
            fprintf(out, "\"htod_locked\": %llu, \"dtoh_locked\": %llu, \"memsets\": %llu, \"streams\": %llu, ",
                    Address(c.to_device_locked), Address(c.to_host_locked), Address(c.memsets), Address(c.streams));
            fprintf(out, "\"most_streams\": %llu, \"events\": %llu, \"launches\": ", Address(c.most_streams), Address(c.events));
            write_counts(out, c.launches);
            fprintf(out, ", \"blocks\": ");
            write_counts(out, c.blocks);
            fprintf(out, ", \"error\": %d, \"leaks\": ", device->broken);
            write_leaks(out, *device);
            fprintf(out, "}");
        }
        size_t live = host_lost_bytes;
        for (auto& memory : host) live += memory.second.bytes;
        fprintf(out, "], \"host\": {\"peak\": %llu, \"allocations\": %llu, \"frees\": %llu, \"leaks\": {\"allocations\": %zu, \"bytes\": %zu}}, \"calls\": ",
                Address(host_peak), Address(host_allocations), Address(host_frees), host.size() + host_lost, live);
        write_counts(out, calls);
        size_t pending = 0;
        for (auto& stream : working) {
            for (auto& work : stream->queue) pending += work.moves_data;
        }
        fprintf(out, ", \"pending\": %zu}\n", pending);
    }

private:
    std::vector<std::shared_ptr<Stream>> working; // every stream that exists or has work left
    std::vector<Failure> failures;
    bool others_first = false, shuffled = false;
    std::minstd_rand random;

    static std::vector<int> visible(size_t count) {
        std::vector<int> found;
        const char* list = getenv("CUDA_VISIBLE_DEVICES");
        if (!list) {
            for (size_t i = 0; i < count; i++) found.push_back(int(i));
            return found;
        }
        std::istringstream items(list);
        std::string item;
        while (std::getline(items, item, ',')) {
            char* end = nullptr;
            long index = strtol(item.c_str(), &end, 10);
            bool known = end != item.c_str() && index >= 0 && size_t(index) < count;
            if (!known) break; // as the driver does: what follows an unknown one is not seen
            found.push_back(int(index));
        }
        return found;
    }

    void read_failures() {
        const char* set = getenv("FAKE_CUDA_FAIL");
        std::istringstream list(set ? set : "");
        std::string item;
        while (std::getline(list, item, ',')) {
            char function[128] = "";
            unsigned long long from = 0;
            size_t first = item.find(':'), last = item.rfind(':'), at = item.find('@');
            if (first == std::string::npos || first == last) die("FAKE_CUDA_FAIL is not FUNCTION:N:CODE: " + item);
            snprintf(function, sizeof function, "%s", item.substr(0, std::min(first, at)).c_str());
            from = strtoull(item.c_str() + first + 1, nullptr, 10);
            int device = at < first ? atoi(item.c_str() + at + 1) : -1;
            int code = atoi(item.c_str() + last + 1);
            if (!error_text(code) || from == 0) die("FAKE_CUDA_FAIL is not FUNCTION:N:CODE: " + item);
            failures.push_back({function, device, from, item[last - 1] == '+', code});
        }
    }

    void push(const std::shared_ptr<Stream>& stream, Work work) {
        stream->queue.push_back(std::move(work));
        stream->queued++;
        if (std::find(working.begin(), working.end(), stream) == working.end()) working.push_back(stream);
    }

    void wait_for(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Stream>& other) {
        if (other->executed == other->queued) return;
        push(stream, {nullptr, std::make_shared<Mark>(Mark{other, other->queued, {}})});
    }

    static bool is_ready(const Stream& stream) {
        return !stream.queue.empty() && (!stream.queue.front().waits || stream.queue.front().waits->done());
    }

    static void step(Stream& stream) {
        Work work = std::move(stream.queue.front());
        stream.queue.pop_front();
        // Nothing runs after an error that lasts.
        if (work.run && !stream.device->broken) {
            if (int code = work.run()) stream.device->broken = code;
        }
        stream.executed++;
    }

    // As a device does whose other streams are ahead.
    void run_others(const Stream* target) {
        for (bool moved = true; moved;) {
            moved = false;
            for (auto& stream : working) {
                while (stream.get() != target && is_ready(*stream)) step(*stream), moved = true;
            }
        }
    }

    void stir() {
        for (size_t i = random() % (working.size() * 2); i > 0; i--) {
            auto& stream = working[random() % working.size()];
            if (is_ready(*stream)) step(*stream);
        }
    }

    void forget_idle() {
        auto idle = [&](const std::shared_ptr<Stream>& s) {
            return s->queue.empty() && s != s->device->null_stream && !streams.count(s.get());
        };
        working.erase(std::remove_if(working.begin(), working.end(), idle), working.end());
    }

    static void write_counts(FILE* out, const std::map<std::string, uint64_t>& counts) {
        const char* between = "";
        fprintf(out, "{");
        for (auto& count : counts) {
            fprintf(out, "%s\"%s\": %llu", between, count.first.c_str(), Address(count.second));
            between = ", ";
        }
        fprintf(out, "}");
    }

    void write_leaks(FILE* out, const Device& device) const {
        size_t bytes = device.counts.lost_bytes, kept = device.counts.lost, open = 0, marks = 0, loaded = 0;
        for (auto& allocation : device.allocations) {
            kept += !allocation.second.leaving;
            bytes += allocation.second.leaving ? 0 : allocation.second.bytes;
        }
        for (auto& stream : streams) open += stream.second->device == &device;
        for (auto& event : events) marks += event.second->device == &device;
        for (auto& module : modules) loaded += module.second->device == &device;
        fprintf(out, "{\"allocations\": %zu, \"bytes\": %zu, \"streams\": %zu, \"events\": %zu, \"modules\": %zu, \"contexts\": %d}",
                kept, bytes, open, marks, loaded, device.retained);
    }
};
