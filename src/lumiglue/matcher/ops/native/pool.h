// Threads that wait asleep.
#pragma once

#include <cstdint>

// Calls task(0) to task(count - 1) on up to `threads` threads, the caller among them, and returns once all are done.
// A thread that the system does not run takes no task, so busy cores slow the work by what they take and no more.
void run_tasks(int64_t count, int threads, void (*call)(void *, int64_t), void *task);

template <typename Task> void run_tasks(int64_t count, int threads, Task &&task) {
    run_tasks(count, threads, [](void *context, int64_t i) { (*static_cast<Task *>(context))(i); }, &task);
}
