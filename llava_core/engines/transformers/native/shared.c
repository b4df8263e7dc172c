/* What is asked before anything is computed: permission, sizes, and the packing of weights. */
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

/* Whether the system lets this process compute as this was compiled. */
int is_allowed(void)
{
#ifdef __AMX_BF16__
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return 1;
#endif
}

/* Whether products are computed in tiles. */
int has_tiles(void)
{
#ifdef __AMX_BF16__
    return 1;
#else
    return 0;
#endif
}

int64_t padded_width(int64_t inputs) { return width(inputs); }
int64_t padded_tokens(int64_t tokens) { return whole_tiles(tokens); }
int64_t scores_per_thread(int64_t longest) { return scores_of_thread(longest); }

/* (outputs, inputs) of bfloat16 as the tiles read it; `to` has room for outputs rounded up to 32. */
void pack(const bf16 *from, int64_t outputs, int64_t inputs, bf16 *to)
{
    const int64_t tiles = inputs / 32, blocks = (outputs + 31) / 32 * 2;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t k = 0; k < tiles; k++) {
            bf16 *tile = to + (block * tiles + k) * 512;
            for (int64_t pair = 0; pair < 16; pair++)
                for (int64_t out = 0; out < 16; out++)
                    for (int64_t i = 0; i < 2; i++) {
                        const int64_t o = 16 * block + out;
                        tile[pair * 32 + out * 2 + i] = o < outputs ? from[o * inputs + 32 * k + 2 * pair + i] : 0;
                    }
        }
}
