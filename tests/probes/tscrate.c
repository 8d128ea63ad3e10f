/* At which rate CLOCK_MONOTONIC_RAW takes the TSC to run, from ten seconds or argv[1] of it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

struct moment { uint64_t tsc; int64_t ns; };

/* The reading that took the least of many: nothing came between its TSC values. */
static struct moment now(void)
{
	struct moment best = { 0, 0 };
	uint64_t least = UINT64_MAX;
	for (int i = 0; i < 2000; i++) {
		struct timespec t;
		uint64_t before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC_RAW, &t);
		uint64_t width = __rdtsc() - before;
		if (width < least) {
			least = width;
			best.tsc = before + width / 2;
			best.ns = t.tv_sec * 1000000000LL + t.tv_nsec;
		}
	}
	return best;
}

int main(int argc, char **argv)
{
	struct moment start = now();
	sleep(argc > 1 ? atoi(argv[1]) : 10);
	struct moment end = now();
	printf("tsc rate: %.1f Hz\n", (end.tsc - start.tsc) * 1e9 / (end.ns - start.ns));
	return 0;
}
