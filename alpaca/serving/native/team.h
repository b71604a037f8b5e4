// The threads of this process that share the work of a step.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <unistd.h>

namespace {

// The threads of this process that share the work. A step hands out work some hundreds of times, so those who wait for
// more do so awake, for a moment. OpenMP's would go to sleep each time wherever a process has more of them than
// processors, and torch gives every thread that computes a team of its own.
class Team {
    static constexpr int AWAKE = 20000;  // looks before one who waits goes to sleep: some tenths of a millisecond
    using Part = void (*)(const void* work, long number, long count);

    const long count;
    std::mutex busy, asleep;
    std::condition_variable wake;
    std::atomic<uint32_t> turn{0};
    std::atomic<long> left{0}, sleeping{0};
    Part part = nullptr;
    const void* work = nullptr;

    static void rest() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void serve(long number) {
        for (uint32_t seen = 0;; seen++) {
            for (int look = 0; look < AWAKE && turn.load(std::memory_order_acquire) == seen; look++) rest();
            if (turn.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(asleep);
                sleeping++;
                wake.wait(lock, [&] { return turn.load() != seen; });
                sleeping--;
            }
            part(work, number, count);
            left.fetch_sub(1, std::memory_order_release);
        }
    }

  public:
    explicit Team(long count) : count(count) {
        for (long number = 1; number < count; number++) std::thread([this, number] { serve(number); }).detach();
    }

    // All call `each(number, count)` once, this thread as number 0. Where another thread has the team, this one does all.
    template <class Each> void share(const Each& each) {
        std::unique_lock<std::mutex> mine(busy, std::try_to_lock);
        if (count == 1 || !mine) return each(0, 1);
        part = [](const void* work, long number, long count) { (*static_cast<const Each*>(work))(number, count); };
        work = &each;
        left.store(count - 1, std::memory_order_relaxed);
        turn.fetch_add(1);
        if (sleeping.load()) {
            std::lock_guard<std::mutex> lock(asleep);
            wake.notify_all();
        }
        each(0, count);
        for (int look = 0; left.load(std::memory_order_acquire); look++) look < AWAKE ? rest() : std::this_thread::yield();
    }
};

// Made at first use and never ended. A process that was forked off has none of its parent's threads, and makes its own.
std::atomic<Team*> team{nullptr};
std::atomic<long> team_of{0};
long threads = 1;

Team& the_team() {
    static std::mutex making;
    const long process = getpid();
    if (team_of.load(std::memory_order_acquire) != process) {
        std::lock_guard<std::mutex> lock(making);
        if (team_of.load() != process) {
            team.store(new Team(threads));
            team_of.store(process, std::memory_order_release);
        }
    }
    return *team.load(std::memory_order_relaxed);
}

// `each(first, last)` for shares of 0 … count that are nearly equal.
template <class Each> inline void share(long count, const Each& each) {
    the_team().share([&](long number, long members) {
        const long first = number * count / members, last = (number + 1) * count / members;
        if (first < last) each(first, last);
    });
}

// The same, by this thread alone where the work is not worth handing out.
template <class Each> inline void share_if(bool worth, long count, const Each& each) {
    if (worth)
        share(count, each);
    else
        each(0, count);
}

}  // namespace
