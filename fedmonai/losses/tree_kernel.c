// SPDX-License-Identifier: Apache-2.0
// Spanning trees of pixel grids, their breadth-first order and sums along them: tree_kernel.py builds and calls this.
// Every sum is made in the order of the numpy form, and without fused multiply-adds, so that both give the same bits.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DIGIT = 11, BUCKETS = 1 << DIGIT };

static int32_t root_of(int32_t *up, int32_t pixel) {
  while (up[pixel] != pixel) pixel = up[pixel] = up[up[pixel]];
  return pixel;
}

// Kruskal's algorithm. Keys are the bits of non-negative floats, which sort like the floats; the sort is stable, so of
// equal edges the first one is taken. What is above infinity (NaN) counts as infinite.
#define SPANNING_TREE(NAME, KEY, INFINITE)                                                                            \
  static int NAME(const KEY *cost, uint8_t *in_tree, int32_t height, int32_t width) {                                 \
    const int32_t pixels = height * width, vertical = (height - 1) * width, edges = 2 * pixels - height - width;      \
    int32_t *order = malloc(edges * sizeof *order), *next = malloc(edges * sizeof *next);                             \
    int32_t *up = malloc(pixels * sizeof *up);                                                                        \
    const int good = order && next && up;                                                                             \
    if (good) {                                                                                                       \
      for (int32_t i = 0; i < edges; i++) order[i] = i;                                                               \
      for (int32_t i = 0; i < pixels; i++) up[i] = i;                                                                 \
      for (unsigned shift = 0; shift < 8 * sizeof(KEY); shift += DIGIT) {                                             \
        int32_t start[BUCKETS + 1] = {0};                                                                             \
        for (int32_t i = 0; i < edges; i++) {                                                                         \
          const KEY key = cost[i] > INFINITE ? INFINITE : cost[i];                                                    \
          start[((key >> shift) & (BUCKETS - 1)) + 1]++;                                                              \
        }                                                                                                             \
        for (int32_t i = 0; i < BUCKETS; i++) start[i + 1] += start[i];                                               \
        for (int32_t i = 0; i < edges; i++) {                                                                         \
          const KEY key = cost[order[i]] > INFINITE ? INFINITE : cost[order[i]];                                      \
          next[start[(key >> shift) & (BUCKETS - 1)]++] = order[i];                                                   \
        }                                                                                                             \
        int32_t *swap = order;                                                                                        \
        order = next;                                                                                                 \
        next = swap;                                                                                                  \
      }                                                                                                               \
      for (int32_t i = 0, left = pixels - 1; i < edges && left; i++) {                                                \
        const int32_t edge = order[i], sideways = edge - vertical;                                                    \
        const int32_t one = edge < vertical ? edge : sideways / (width - 1) * width + sideways % (width - 1);         \
        const int32_t a = root_of(up, one), b = root_of(up, edge < vertical ? one + width : one + 1);                 \
        if (a == b) continue;                                                                                         \
        up[a > b ? a : b] = a > b ? b : a;                                                                            \
        in_tree[edge] = 1;                                                                                            \
        left--;                                                                                                       \
      }                                                                                                               \
    }                                                                                                                 \
    free(order);                                                                                                      \
    free(next);                                                                                                       \
    free(up);                                                                                                         \
    return good;                                                                                                      \
  }

SPANNING_TREE(tree_of_floats, uint32_t, UINT32_C(0x7F800000))
SPANNING_TREE(tree_of_doubles, uint64_t, UINT64_C(0x7FF0000000000000))

// 1 if there was enough memory. `wide` is 1 for doubles.
int spanning_trees(const void *costs, uint8_t *in_tree, int64_t trees, int32_t height, int32_t width, int wide) {
  const int64_t edges = 2 * (int64_t)height * width - height - width;
  for (int64_t tree = 0; tree < trees; tree++) {
    uint8_t *marks = in_tree + tree * edges;
    const int good = wide ? tree_of_doubles((const uint64_t *)costs + tree * edges, marks, height, width)
                          : tree_of_floats((const uint32_t *)costs + tree * edges, marks, height, width);
    if (!good) return 0;
  }
  return 1;
}

// Parent pixel of every pixel, the pixels in breadth-first order, and the position of each one's parent in that order.
void root_trees(const uint8_t *in_tree, int64_t trees, int32_t height, int32_t width, int32_t root, int64_t *parent,
                int32_t *order, int32_t *above) {
  const int32_t pixels = height * width, vertical = (height - 1) * width;
  const int64_t edges = 2 * (int64_t)pixels - height - width;
  for (int64_t tree = 0; tree < trees; tree++, in_tree += edges, parent += pixels, order += pixels, above += pixels) {
    const uint8_t *down = in_tree, *right = in_tree + vertical;
    order[0] = root;
    above[0] = 0;
    parent[root] = root;
    for (int32_t first = 0, end = 1; first < end; first++) {
      const int32_t pixel = order[first], row = pixel / width, column = pixel % width, from = (int32_t)parent[pixel];
      const int32_t beside = row * (width - 1) + column;
      const int32_t near[4] = {pixel - width, pixel - 1, pixel + 1, pixel + width};
      const int joined[4] = {row > 0 && down[pixel - width], column > 0 && right[beside - 1],
                             column < width - 1 && right[beside], row < height - 1 && down[pixel]};
      for (int way = 0; way < 4; way++) {
        if (!joined[way] || near[way] == from) continue;
        parent[near[way]] = pixel;
        above[end] = first;
        order[end++] = near[way];
      }
    }
  }
}

// below(v) = x(v) + sum of w_c below(c) over children c;  total(v) = (1 - w_v^2) below(v) + w_v total(parent).
#define TREE_SUMS(NAME, REAL)                                                                                         \
  void NAME(const REAL *values, const REAL *weight, const int32_t *order, const int32_t *above, int64_t trees,        \
            int32_t pixels, int32_t channels, REAL *below, REAL *total) {                                             \
    memcpy(below, values, (size_t)trees * pixels * channels * sizeof(REAL));                                          \
    for (int64_t tree = 0; tree < trees; tree++) {                                                                    \
      for (int32_t last = pixels - 1; last > 0;) {                                                                    \
        int32_t first = last;                                                                                         \
        while (first > 1 && above[first - 1] == above[last]) first--;                                                 \
        REAL *into = below + (int64_t)order[above[last]] * channels;                                                  \
        for (int32_t channel = 0; channel < channels; channel++) {                                                    \
          const REAL eldest = below[(int64_t)order[first] * channels + channel] * weight[order[first]];               \
          REAL others = 0; /* numpy adds the first of a group to the sum of the others */                             \
          for (int32_t child = first + 1; child <= last; child++)                                                     \
            others += below[(int64_t)order[child] * channels + channel] * weight[order[child]];                       \
          into[channel] += first < last ? eldest + others : eldest;                                                   \
        }                                                                                                             \
        last = first - 1;                                                                                             \
      }                                                                                                               \
      for (int32_t position = 0; position < pixels; position++) {                                                     \
        const int64_t own = (int64_t)order[position] * channels, up = (int64_t)order[above[position]] * channels;     \
        const REAL w = weight[order[position]], rest = 1 - w * w;                                                     \
        for (int32_t channel = 0; channel < channels; channel++) {                                                    \
          total[own + channel] = below[own + channel] * rest;                                                         \
          if (position) total[own + channel] += w * total[up + channel];                                              \
        }                                                                                                             \
      }                                                                                                               \
      below += (int64_t)pixels * channels;                                                                            \
      total += (int64_t)pixels * channels;                                                                            \
      weight += pixels;                                                                                               \
      order += pixels;                                                                                                \
      above += pixels;                                                                                                \
    }                                                                                                                 \
  }

TREE_SUMS(sums_of_floats, float)
TREE_SUMS(sums_of_doubles, double)
