/*
 * A team of threads: the caller, and the threads that it wakes. After each stage of their work comes a barrier.
 *
 * Free threads take the work in portions.
 */

#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* After this many checks, a waiting thread begins to yield its processor to others. */
#define SPINS 4000
#define ALIGNMENT 64

/* A team's work. Each member calls it once, with its number; the caller is number 0. */
typedef void Task(void *work, int member);

struct Team;

typedef struct {
    struct Team *team;
    pthread_t thread;
    int number;
} Member;

typedef struct Team {
    Member *members;
    void *work;
    int size;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* Protected by the lock. */
    Task *task;
    uint64_t tasks;
    bool closing;
    /* On separate cache lines: all threads write to them. */
    _Alignas(ALIGNMENT) atomic_int arrived;
    _Alignas(ALIGNMENT) atomic_uint generation;
    _Alignas(ALIGNMENT) atomic_llong taken;
} Team;

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* The last thread to arrive resets the work counter and lets all continue. */
static void barrier(Team *team)
{
    unsigned generation = atomic_load_explicit(&team->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->taken, 0, memory_order_relaxed);
        atomic_store_explicit(&team->generation, generation + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->generation, memory_order_acquire) == generation; spins++) {
        if (spins < SPINS)
            pause_briefly();
        else
            sched_yield();
    }
}

/* The next portion of a stage's work: large at first, small towards the end, so that all threads finish together. */
static bool claim(Team *team, int64_t total, int64_t smallest, int64_t *first, int64_t *behind)
{
    long long taken = atomic_load_explicit(&team->taken, memory_order_relaxed);
    do {
        if (taken >= total)
            return false;
        int64_t portion = (total - taken) / (2 * team->size);
        *first = taken;
        *behind = taken + (portion > smallest ? portion : smallest);
        if (*behind > total)
            *behind = total;
    } while (!atomic_compare_exchange_weak_explicit(
        &team->taken, &taken, *behind, memory_order_relaxed, memory_order_relaxed));
    return true;
}

static void *serve(void *argument)
{
    Member *member = argument;
    Team *team = member->team;
    uint64_t done = 0;
    for (;;) {
        pthread_mutex_lock(&team->lock);
        while (team->tasks == done && !team->closing)
            pthread_cond_wait(&team->wake, &team->lock);
        bool closing = team->closing;
        Task *task = team->task;
        done = team->tasks;
        pthread_mutex_unlock(&team->lock);
        if (closing)
            return NULL;
        task(team->work, member->number);
        barrier(team);
    }
}

static void run(Team *team, Task *task)
{
    pthread_mutex_lock(&team->lock);
    team->task = task;
    team->tasks++;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    task(team->work, 0);
    barrier(team);
}

/* started: the number of threads to join, without the caller. */
static void dismiss(Team *team, int started)
{
    pthread_mutex_lock(&team->lock);
    team->closing = true;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (int i = 1; i <= started; i++)
        pthread_join(team->members[i].thread, NULL);
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->wake);
    free(team->members);
}

/* Start a team of ``size`` threads, including the caller. False if there is no memory or no thread for it. */
static bool assemble(Team *team, int size, void *work)
{
    team->size = size;
    team->work = work;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->wake, NULL);
    team->members = calloc((size_t)size, sizeof *team->members);
    int started = 0;
    for (; team->members && started < size - 1; started++) {
        Member *member = &team->members[started + 1];
        member->team = team;
        member->number = started + 1;
        if (pthread_create(&member->thread, NULL, serve, member))
            break;
    }
    if (team->members && started == size - 1)
        return true;
    dismiss(team, started);
    return false;
}
