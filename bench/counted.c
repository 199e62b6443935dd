/* What bench/counted.py asks of valgrind: requests that are no-ops outside of it. */
#include <valgrind/callgrind.h>

/* Never stopped: what is begun anew lacks what was counted before. */
void start_counting(void)
{
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

/* The dump has what was counted since the start, of all threads. */
void stop_counting(void) { CALLGRIND_DUMP_STATS; }
