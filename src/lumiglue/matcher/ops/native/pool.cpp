#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#ifndef _WIN32
#include <pthread.h>
#endif

namespace {

constexpr auto SPIN = std::chrono::microseconds(20); // before a thread sleeps: less than it takes to wake one

// While it lives, numbers too small for full precision count as zero: some processors take 100 times as long for them.
struct FlushTiny {
#ifdef __SSE__
    unsigned before = __builtin_ia32_stmxcsr();
    FlushTiny() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushTiny() { __builtin_ia32_ldmxcsr(before); }
#endif
};

struct Job {
    void (*call)(void *, int64_t);
    void *task;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<int> running{0};
    int places = 0; // threads that may still join

    void work() {
        [[maybe_unused]] FlushTiny flush;
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(task, i);
    }
};

template <typename Condition> bool spin_until(Condition condition) {
    for (auto end = std::chrono::steady_clock::now() + SPIN; !condition();) {
        if (std::chrono::steady_clock::now() > end) return false;
    }
    return true;
}

struct Pool {
    std::mutex callers; // one job at a time; whoever comes meanwhile works alone
    std::mutex mutex;
    std::condition_variable posted, done;
    std::atomic<uint64_t> jobs{0}; // posted so far
    Job *job = nullptr;            // the one that threads may join
    int workers = 0;

    void serve() {
        for (uint64_t seen = 0;;) {
            spin_until([this, seen] { return jobs.load(std::memory_order_relaxed) != seen; });
            std::unique_lock<std::mutex> lock(mutex);
            posted.wait(lock, [this, seen] { return jobs != seen && job && job->places > 0; });
            seen = jobs;
            Job *mine = job;
            mine->places--;
            mine->running++;
            lock.unlock();
            mine->work();
            lock.lock();
            if (--mine->running == 0) done.notify_one();
        }
    }

    void run(Job &mine, int helpers) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            for (; workers < helpers; workers++) std::thread([this] { serve(); }).detach();
            mine.places = helpers;
            job = &mine;
            jobs++;
        }
        posted.notify_all();
        mine.work();
        {
            std::lock_guard<std::mutex> lock(mutex);
            job = nullptr; // nobody joins any more
        }
        spin_until([&mine] { return mine.running.load() == 0; });
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [&mine] { return mine.running.load() == 0; });
    }
};

std::atomic<Pool *> pool{nullptr}; // never destroyed: its threads outlive main

Pool &the_pool() {
    static std::once_flag once;
    std::call_once(once, [] {
        pool = new Pool;
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; }); // a forked process has none of the threads
#endif
    });
    return *pool;
}

} // namespace

void run_tasks(int64_t count, int threads, void (*call)(void *, int64_t), void *task) {
    Job job{call, task, count};
    int helpers = static_cast<int>(threads < count ? threads : count) - 1;
    if (helpers < 1) return job.work();
    Pool &all = the_pool();
    std::unique_lock<std::mutex> turn(all.callers, std::try_to_lock);
    if (!turn.owns_lock()) return job.work();
    all.run(job, helpers);
}
