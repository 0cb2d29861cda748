// Sparse training kernels on batch-last tensors: C11 with the vector extensions of gcc and clang, nothing else.
//
// A tensor [channels][rows][columns][samples] lies with its samples innermost, so one weight multiplies a run of floats that lie side by
// side in memory: (columns x samples) of a row. Shifting by a column is an unaligned load, so no lane idles where the batch is no
// multiple of the vector length.
//
// A convolution is cut into units: a slice of samples x a band of rows. A unit's source rows are copied once into a packed buffer with a
// zero border (and, if asked for, scaled, shifted and clipped at zero on the way: a normalisation and a ReLU that are never stored). Then,
// tile by tile, every output channel is a sum over its list of (offset into the packed buffer, weight), held in registers.
//
// Every sum has a fixed order that does not depend on threads: a unit (or, for weight gradients, an output channel) belongs to one.
// The caller checks shapes, types and index ranges: see native.py.
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef VL
#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif
#endif

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t ivec __attribute__((vector_size(VL * 4)));
typedef float vecu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
INLINE vec load(const float *p) { return *(const vecu *)p; }
INLINE void store(float *p, vec v) { *(vecu *)p = v; }
// as torch.relu: NaN stays
INLINE vec positive(vec v) { return (vec)((ivec)v & ~(v <= 0)); }
INLINE float positive1(float v) { return v <= 0 ? 0 : v; }
INLINE int least(int a, int b) { return a < b ? a : b; }

int32_t sparcl_abi(void) { return 3; }
int32_t sparcl_vector_floats(void) { return VL; }

// A gather: output (row r, column q) of channel o sums weight * source(row r * stride_h - pad_h + kh, column q * stride_w - pad_w + kw) over
// o's list. The geometry of lists and buffers is computed in geometry.py; both sides hold the same fields in the same order.
typedef struct {
  int32_t batch, slice;                            // samples; samples of a slice (a short last one is filled with zeros)
  int32_t channels, height, width;                 // source
  int32_t outs, rows, cols;                        // output channels, rows and columns that are computed
  int32_t stride_h, stride_w, pad_h, pad_w;
  int32_t out_h, out_w;                            // whole plane of the output, of which
  int32_t row0, row_step, col0, col_step;          // these rows and columns are computed
  int32_t unit_rows;                               // rows of a band
  int32_t packed_rows, row_floats, phase_floats;   // packed source: [channels][packed_rows][least(stride_w, kernel columns)][phase_floats]
  int32_t tile, blocks;                            // vectors of a tile; blocks of source channels
  int32_t kernel_rows;
} Gather;

static void pack_row(const Gather *g, const float *from, int n, float a, float b, int is_active, float *row) {
  const int S = g->slice, columns = g->phase_floats / S, phases = g->row_floats / g->phase_floats;
  for (int p = 0; p < phases; p++) {
    float *to = row + p * g->phase_floats;
    int lo = 0, hi = columns; // columns j that exist: 0 <= j * stride + p - pad < width
    while (lo < hi && (int64_t)lo * g->stride_w + p < g->pad_w) lo++;
    while (hi > lo && (int64_t)(hi - 1) * g->stride_w + p - g->pad_w >= g->width) hi--;
    memset(to, 0, sizeof(float) * lo * S);
    memset(to + hi * S, 0, sizeof(float) * (g->phase_floats - hi * S));
    const int run = g->stride_w == 1 && S == g->batch ? hi - lo : 1; // columns that lie side by side on both sides
    for (int j = lo; j < hi; j += run) {
      const float *f = from + (int64_t)(j * g->stride_w + p - g->pad_w) * g->batch;
      float *t = to + j * S;
      const int m = run == 1 ? n : run * S;
      int i = 0;
      if (is_active) {
        for (; i + VL <= m; i += VL) store(t + i, positive(load(f + i) * a + b));
        for (; i < m; i++) t[i] = positive1(f[i] * a + b);
      } else {
        for (; i + VL <= m; i += VL) store(t + i, load(f + i));
        for (; i < m; i++) t[i] = f[i];
      }
      if (run == 1) for (; i < S; i++) t[i] = 0;
    }
  }
}

// The source rows of one unit. scale, shift: per source channel, or null; with them what is packed is max(0, scale * source + shift).
static void pack(const Gather *g, const float *source, const float *scale, const float *shift, int first_row, int sample0, float *to) {
  const int n = least(g->batch - sample0, g->slice);
  for (int c = 0; c < g->channels; c++)
    for (int r = 0; r < g->packed_rows; r++) {
      float *row = to + ((int64_t)c * g->packed_rows + r) * g->row_floats;
      const int y = first_row + r;
      if (y < 0 || y >= g->height) memset(row, 0, sizeof(float) * g->row_floats);
      else pack_row(g, source + ((int64_t)c * g->height + y) * g->width * g->batch + sample0, n, scale ? scale[c] : 1, scale ? shift[c] : 0,
                    scale != 0, row);
    }
}

// One tile of every output channel: V vectors each. Lists come longest first, so that the end of one is predicted from the one before.
typedef struct {
  const int32_t *order, *ptr, *off, *init_at, *at;
  const float *val, *source, *init, *bias;
  float *to;
  int64_t init_step, step;
  int outs, pitch, first, last; // a list's part for kernel rows first .. last - 1, of pitch - 1
} Tile;

#define EACH_1(M) M(0)
#define EACH_2(M) EACH_1(M) M(1)
#define EACH_3(M) EACH_2(M) M(2)
#define EACH_4(M) EACH_3(M) M(3)
#define EACH_5(M) EACH_4(M) M(4)
#define EACH_6(M) EACH_5(M) M(5)
#define EACH_7(M) EACH_6(M) M(6)
#define EACH_8(M) EACH_7(M) M(7)
#define EACH_9(M) EACH_8(M) M(8)
#define EACH_10(M) EACH_9(M) M(9)
#define EACH_11(M) EACH_10(M) M(10)
#define EACH_12(M) EACH_11(M) M(11)
#define EACH_13(M) EACH_12(M) M(12)
#define EACH_14(M) EACH_13(M) M(13)
#define EACH_15(M) EACH_14(M) M(14)
#define EACH_16(M) EACH_15(M) M(15)
#define EACH_17(M) EACH_16(M) M(16)
#define EACH_18(M) EACH_17(M) M(17)
#define EACH_19(M) EACH_18(M) M(18)
#define EACH_20(M) EACH_19(M) M(19)
#define EACH_21(M) EACH_20(M) M(20)
#define EACH_22(M) EACH_21(M) M(21)
#define EACH_23(M) EACH_22(M) M(22)
#define EACH_24(M) EACH_23(M) M(23)

#define DECLARE(v) vec a##v = {0};
#define START(v) a##v = load(from + t->init_at[v]);
#define BIAS(v) a##v += bias;
#define ADD0(v) a##v += load(p0 + v * VL) * w0;
#define ADD1(v) a##v += load(p1 + v * VL) * w1;
#define DECLARE2(v) vec b##v = {0};
#define ADD1B(v) b##v += load(p1 + v * VL) * w1;
#define JOIN2(v) a##v += b##v;
#define DECLARE4(v) vec b##v = {0}, c##v = {0}, d##v = {0};
#define ADD2C(v) c##v += load(p2 + v * VL) * w2;
#define ADD3D(v) d##v += load(p3 + v * VL) * w3;
#define JOIN4(v) a##v = (a##v + b##v) + (c##v + d##v);
#define FINISH(v) store(to + t->at[v], a##v);
#define ENTRY(i) const float *p##i = t->source + off[k + i]; const float w##i = val[k + i];

// A short tile has several accumulators per vector (MORE, joined at the end): one would wait for the result of its last addition.
#define TILE(V, MORE, STEP, ENTRIES, EACH_STEP, JOIN) \
  static void tile_##V(const Tile *t) { \
    const int32_t *off = t->off; \
    const float *val = t->val; \
    for (int i = 0; i < t->outs; i++) { \
      const int32_t *ptr = t->ptr + i * t->pitch; \
      const int o = t->order[i], end = ptr[t->last]; \
      int k = ptr[t->first]; \
      EACH_##V(DECLARE) MORE \
      if (t->init) { const float *from = t->init + o * t->init_step; EACH_##V(START) } \
      if (t->bias) { const float bias = t->bias[o]; EACH_##V(BIAS) } \
      for (; k + STEP <= end; k += STEP) { ENTRIES EACH_STEP } \
      for (; k < end; k++) { ENTRY(0) EACH_##V(ADD0) } \
      JOIN \
      float *to = t->to + o * t->step; \
      EACH_##V(FINISH) \
    } \
  }
#define TILE_OF_4(V) TILE(V, EACH_##V(DECLARE4), 4, ENTRY(0) ENTRY(1) ENTRY(2) ENTRY(3), \
                          EACH_##V(ADD0) EACH_##V(ADD1B) EACH_##V(ADD2C) EACH_##V(ADD3D), EACH_##V(JOIN4))
#define TILE_OF_2(V) TILE(V, EACH_##V(DECLARE2), 2, ENTRY(0) ENTRY(1), EACH_##V(ADD0) EACH_##V(ADD1B), EACH_##V(JOIN2))
#define TILE_OF_1(V) TILE(V, , 2, ENTRY(0) ENTRY(1), EACH_##V(ADD0) EACH_##V(ADD1), )
TILE_OF_4(1) TILE_OF_4(2) TILE_OF_2(3) TILE_OF_2(4) TILE_OF_2(5) TILE_OF_2(6)
TILE_OF_1(7) TILE_OF_1(8) TILE_OF_1(9) TILE_OF_1(10) TILE_OF_1(11) TILE_OF_1(12)
#define LONGEST_TILE 12
static void (*const TILES[])(const Tile *) = {0, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11, tile_12};

// Forward pass and gradient of the input. List i of block b belongs to channel order[b * outs + i]; it holds its kernel rows one after the
// other, row k from ptr[(b * outs + i) * (kernel_rows + 1) + k]: those that meet no source row are left out.
// accumulate: add to what lies in `out`. packed, sums: scratch, see geometry.py. Units unit0 <= u < unit1 are computed.
void sparcl_gather(const Gather *g, const float *source, const float *scale, const float *shift, const int32_t *order, const int32_t *ptr,
                   const int32_t *off, const float *val, const float *bias, int32_t accumulate, float *out, float *packed, float *sums,
                   int32_t unit0, int32_t unit1) {
  const int S = g->slice, L = g->cols * S, nv = (L + VL - 1) / VL;
  const int bands = (g->rows + g->unit_rows - 1) / g->unit_rows;
  const int64_t plane = (int64_t)g->out_h * g->out_w * g->batch;
  int32_t straight[LONGEST_TILE], at[LONGEST_TILE];
  for (int v = 0; v < LONGEST_TILE; v++) straight[v] = v * VL;
  for (int unit = unit0; unit < unit1; unit++) {
    const int sample0 = unit / bands * S, band0 = unit % bands * g->unit_rows;
    const int n = least(g->batch - sample0, S), rows = least(g->rows - band0, g->unit_rows);
    pack(g, source, scale, shift, band0 * g->stride_h - g->pad_h, sample0, packed);
    for (int r = 0; r < rows; r++) {
      const int y = (band0 + r) * g->stride_h - g->pad_h, most = least(g->kernel_rows, g->height - y > 0 ? g->height - y : 0);
      const int first = least(y < 0 ? -y : 0, most);
      for (int v0 = 0; v0 < nv; v0 += g->tile) {
        const int V = least(g->tile, nv - v0);
        float *to = out + ((int64_t)(g->row0 + (band0 + r) * g->row_step) * g->out_w + g->col0) * g->batch + sample0;
        // registers are stored where they belong, unless a vector is not whole there
        const int direct = (v0 + V) * VL <= L && ((S == g->batch && g->col_step == 1) || (S % VL == 0 && n == S));
        for (int v = 0; direct && v < V; v++) {
          const int f = (v0 + v) * VL;
          at[v] = S == g->batch && g->col_step == 1 ? f : f / S * g->col_step * g->batch + f % S;
        }
        for (int b = 0; b < g->blocks; b++) {
          const int is_last = b == g->blocks - 1;
          Tile t = {.order = order + b * g->outs, .off = off, .val = val, .outs = g->outs};
          t.ptr = ptr + (int64_t)b * g->outs * (g->kernel_rows + 1), t.pitch = g->kernel_rows + 1, t.first = first, t.last = most;
          t.source = packed + (int64_t)r * g->stride_h * g->row_floats + v0 * VL;
          t.bias = b ? 0 : bias;
          if (b) t.init = sums, t.init_at = straight, t.init_step = V * VL;
          else if (accumulate && direct) t.init = to, t.init_at = at, t.init_step = plane;
          if (is_last && direct) t.to = to, t.at = at, t.step = plane;
          else t.to = sums, t.at = straight, t.step = V * VL;
          TILES[V](&t);
        }
        if (direct) continue;
        for (int o = 0; o < g->outs; o++)
          for (int f = 0; f < V * VL && v0 * VL + f < L; f++) {
            const int col = (v0 * VL + f) / S, s = (v0 * VL + f) % S;
            if (s >= n) continue;
            float *q = to + o * plane + (int64_t)col * g->col_step * g->batch + s;
            *q = (accumulate ? *q : 0) + sums[(int64_t)o * V * VL + f];
          }
      }
    }
  }
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
// sums of neighbours, first those of a, then those of b, within parts of four lanes
#if VL == 4
#define GROUP 8
#define PAIRS(a, b) (SHUFFLE(a, b, 0, 2, 4, 6) + SHUFFLE(a, b, 1, 3, 5, 7))
#elif VL == 8
#define GROUP 8
#define PAIRS(a, b) (SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15))
#define PARTS(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#else
#define GROUP 16
#define PAIRS(a, b) (SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) + \
                     SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31))
#define PARTS(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) + \
                     SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
#endif
#define QUADS(a, i) PAIRS(PAIRS(a[i], a[i + 1]), PAIRS(a[i + 2], a[i + 3]))

// sums[j] = sum of the lanes of a[j]
INLINE void lane_sums(const vec a[GROUP], float sums[GROUP]) {
#if VL == 4
  store(sums, QUADS(a, 0));
  store(sums + 4, QUADS(a, 4));
#elif VL == 8
  store(sums, PARTS(QUADS(a, 0), QUADS(a, 4)));
#else
  store(sums, PARTS(PARTS(QUADS(a, 0), QUADS(a, 4)), PARTS(QUADS(a, 8), QUADS(a, 12))));
#endif
}

// Gradient of the listed weights: grad[k] = sum over rows, columns and samples of packed source[off[k] + ...] * output_grad of k's channel.
// Lists are in order of channels: ptr[o] .. ptr[o + 1]. Channels out0 <= o < out1 are computed. packed, band: scratch.
void sparcl_weight_gradient(const Gather *g, const float *source, const float *scale, const float *shift, const float *output_grad,
                            const int32_t *ptr, const int32_t *off, float *grad, float *packed, float *band, int32_t out0, int32_t out1) {
  const int S = g->slice, L = g->cols * S, nv = (L + VL - 1) / VL;
  const int bands = (g->rows + g->unit_rows - 1) / g->unit_rows, units = (g->batch + S - 1) / S * bands;
  if (ptr[out0] == ptr[out1]) return;
  memset(grad + ptr[out0], 0, sizeof(float) * (ptr[out1] - ptr[out0]));
  for (int unit = 0; unit < units; unit++) {
    const int sample0 = unit / bands * S, band0 = unit % bands * g->unit_rows;
    const int n = least(g->batch - sample0, S), rows = least(g->rows - band0, g->unit_rows);
    pack(g, source, scale, shift, band0 * g->stride_h - g->pad_h, sample0, packed);
    for (int o = out0; o < out1; o++) {
      const int end = ptr[o + 1];
      if (ptr[o] == end) continue;
      for (int r = 0; r < rows; r++) {
        float *to = band + (int64_t)r * nv * VL;
        const float *from = output_grad + ((int64_t)o * g->rows + band0 + r) * g->cols * g->batch + sample0;
        if (S == g->batch) memcpy(to, from, sizeof(float) * L);
        else for (int q = 0; q < g->cols; q++) {
          memcpy(to + q * S, from + (int64_t)q * g->batch, sizeof(float) * n);
          memset(to + q * S + n, 0, sizeof(float) * (S - n));
        }
        memset(to + L, 0, sizeof(float) * (nv * VL - L));
      }
      for (int k = ptr[o]; k < end; k += GROUP) {
        const float *p[GROUP];
        vec a[GROUP];
        float sums[GROUP];
        for (int j = 0; j < GROUP; j++) p[j] = packed + off[k + j < end ? k + j : k], a[j] = (vec){0};
        for (int r = 0; r < rows; r++) {
          const float *y = band + (int64_t)r * nv * VL;
          const int64_t row = (int64_t)r * g->stride_h * g->row_floats;
          for (int v = 0; v < nv; v++) {
            const vec d = load(y + v * VL);
#pragma GCC unroll 16
            for (int j = 0; j < GROUP; j++) a[j] += load(p[j] + row + v * VL) * d;
          }
        }
        lane_sums(a, sums);
        for (int j = 0; j < GROUP && k + j < end; j++) grad[k + j] += sums[j];
      }
    }
  }
}

// out[c] = scale[c] * x[c] + shift[c] (+ other[c]), clipped at zero if is_active. x: [channels][floats]. out may be x or other.
void sparcl_affine(const float *x, const float *scale, const float *shift, const float *other, int32_t is_active, float *out,
                   int64_t floats, int32_t channel0, int32_t channel1) {
  for (int c = channel0; c < channel1; c++) {
    const float *f = x + c * floats, *e = other ? other + c * floats : 0;
    float *t = out + c * floats;
    const float a = scale[c], b = shift[c];
    int64_t i = 0;
    for (; i + VL <= floats; i += VL) {
      vec v = load(f + i) * a + b;
      if (e) v += load(e + i);
      store(t + i, is_active ? positive(v) : v);
    }
    for (; i < floats; i++) {
      const float v = f[i] * a + b + (e ? e[i] : 0);
      t[i] = is_active ? positive1(v) : v;
    }
  }
}

INLINE float lanes(vec v) {
  float sum = 0;
  for (int i = 0; i < VL; i++) sum += v[i];
  return sum;
}

// Mean and biased variance of each channel, in two passes: a plane stays in cache in between.
void sparcl_moments(const float *x, int64_t floats, float *mean, float *variance, int32_t channel0, int32_t channel1) {
  for (int c = channel0; c < channel1; c++) {
    const float *f = x + c * floats;
    float center = 0;
    for (int pass = 0; pass < 2; pass++) {
      vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
      float rest = 0;
      int64_t i = 0;
#define TERM(j) { vec d = load(f + i + j * VL) - center; s##j += pass ? d * d : d; }
      for (; i + 4 * VL <= floats; i += 4 * VL) { TERM(0) TERM(1) TERM(2) TERM(3) }
      for (; i < floats; i++) { const float d = f[i] - center; rest += pass ? d * d : d; }
      const float sum = (lanes((s0 + s1) + (s2 + s3)) + rest) / floats;
      if (pass) variance[c] = sum;
      else mean[c] = center = sum;
    }
  }
}

// Backward pass of out = relu(norm(x) (+ other)), norm(x) = scale * x + shift with scale = gamma / deviation, shift = beta - mean * scale.
// Where the ReLU was open is read from `out`, or, where that is null, computed again. grad_x may be grad; grad_other (or null) gets the
// gradient behind the ReLU.
void sparcl_norm_backward(const float *grad, const float *x, const float *out, const float *scale, const float *shift, const float *mean,
                          const float *inverse, int32_t is_active, float *grad_x, float *grad_other, float *grad_gamma, float *grad_beta,
                          int64_t floats, int32_t channel0, int32_t channel1) {
  for (int c = channel0; c < channel1; c++) {
    const float *d = grad + c * floats, *f = x + c * floats, *z = out ? out + c * floats : 0;
    float *t = grad_x + c * floats, *e = grad_other ? grad_other + c * floats : 0;
    const float a = scale[c], b = shift[c], m = mean[c], r = inverse[c];
    vec s0 = {0}, s1 = {0}, q0 = {0}, q1 = {0};
    float rest = 0, rest_q = 0;
    int64_t i = 0;
#define OPEN(v, at) (is_active ? (vec)((ivec)(v) & ~((z ? load(z + at) : load(f + at) * a + b) <= 0)) : (v))
#define OPEN1(v, at) (is_active && (z ? z[at] : f[at] * a + b) <= 0 ? 0 : (v))
    for (; i + 2 * VL <= floats; i += 2 * VL) {
      vec v = OPEN(load(d + i), i), w = OPEN(load(d + i + VL), i + VL);
      s0 += v, s1 += w;
      q0 += v * (load(f + i) - m), q1 += w * (load(f + i + VL) - m);
    }
    for (; i < floats; i++) { const float v = OPEN1(d[i], i); rest += v, rest_q += v * (f[i] - m); }
    const float sum = lanes(s0 + s1) + rest, dot = (lanes(q0 + q1) + rest_q) * r;
    grad_beta[c] = sum;
    grad_gamma[c] = dot;
    const float from_mean = sum / floats, from_dot = dot * r / floats;
    for (i = 0; i + VL <= floats; i += VL) {
      const vec v = OPEN(load(d + i), i), to = a * (v - from_mean - (load(f + i) - m) * from_dot);
      if (e) store(e + i, v);
      store(t + i, to);
    }
    for (; i < floats; i++) {
      const float v = OPEN1(d[i], i), to = a * (v - from_mean - (f[i] - m) * from_dot);
      if (e) e[i] = v;
      t[i] = to;
    }
  }
}

// GroupNorm (and, with one group, LayerNorm over channels) with statistics per group and sample: out = norm(x), clipped at zero if
// is_active. x: [channels][rows][row], row = columns * batch floats. mean, inverse: [groups][batch]. scratch: 2 * row floats.
void sparcl_group_norm(const float *x, const float *gamma, const float *beta, float epsilon, int32_t is_active, float *out, float *mean,
                       float *inverse, float *scratch, int32_t channels, int32_t rows, int32_t columns, int32_t batch, int32_t group0,
                       int32_t group1, int32_t groups) {
  const int row = columns * batch, per = channels / groups;
  const float count = (float)per * rows * columns;
  float *m = scratch, *s = scratch + row;
  for (int g = group0; g < group1; g++) {
    const float *f = x + (int64_t)g * per * rows * row;
    for (int pass = 0; pass < 2; pass++) {
      memset(s, 0, sizeof(float) * row);
      for (int64_t r = 0; r < (int64_t)per * rows; r++)
        for (int i = 0; i < row; i++) {
          const float d = f[r * row + i] - (pass ? m[i] : 0);
          s[i] += pass ? d * d : d;
        }
      float *to = (pass ? inverse : mean) + (int64_t)g * batch;
      for (int b = 0; b < batch; b++) {
        float sum = 0;
        for (int q = 0; q < columns; q++) sum += s[q * batch + b];
        to[b] = pass ? 1 / sqrtf(sum / count + epsilon) : sum / count;
      }
      for (int i = 0; i < row; i++) (pass ? s : m)[i] = to[i % batch];
    }
    for (int c = 0; c < per; c++) {
      const float a = gamma[g * per + c], b = beta[g * per + c];
      for (int r = 0; r < rows; r++) {
        const float *from = f + ((int64_t)c * rows + r) * row;
        float *to = out + (from - x);
        if (is_active) for (int i = 0; i < row; i++) to[i] = positive1((from[i] - m[i]) * s[i] * a + b);
        else for (int i = 0; i < row; i++) to[i] = (from[i] - m[i]) * s[i] * a + b;
      }
    }
  }
}

// Backward pass of sparcl_group_norm; where the ReLU was open is computed again. scratch: 5 * row floats.
void sparcl_group_norm_backward(const float *grad, const float *x, const float *gamma, const float *beta, int32_t is_active, const float *mean,
                                const float *inverse, float *grad_x, float *grad_gamma, float *grad_beta, float *scratch, int32_t channels,
                                int32_t rows, int32_t columns, int32_t batch, int32_t group0, int32_t group1, int32_t groups) {
  const int row = columns * batch, per = channels / groups;
  const float count = (float)per * rows * columns;
  float *m = scratch, *s = m + row, *sum = s + row, *dot = sum + row, *v = dot + row;
  for (int g = group0; g < group1; g++) {
    const int64_t at = (int64_t)g * per * rows * row;
    for (int i = 0; i < row; i++) m[i] = mean[(int64_t)g * batch + i % batch], s[i] = inverse[(int64_t)g * batch + i % batch];
    memset(sum, 0, 2 * sizeof(float) * row);
    for (int c = 0; c < per; c++) {
      const float a = gamma[g * per + c], b = beta[g * per + c];
      vec beta_sum = {0}, gamma_sum = {0};
      float beta_rest = 0, gamma_rest = 0;
      for (int r = 0; r < rows; r++) {
        const float *f = x + at + ((int64_t)c * rows + r) * row, *d = grad + at + ((int64_t)c * rows + r) * row;
        int i = 0;
        for (; i + VL <= row; i += VL) {
          const vec h = (load(f + i) - load(m + i)) * load(s + i);
          vec u = load(d + i);
          if (is_active) u = (vec)((ivec)u & ~(h * a + b <= 0));
          beta_sum += u, gamma_sum += u * h;
          store(sum + i, load(sum + i) + u * a);
          store(dot + i, load(dot + i) + u * h * a);
        }
        for (; i < row; i++) {
          const float h = (f[i] - m[i]) * s[i], u = is_active && h * a + b <= 0 ? 0 : d[i];
          beta_rest += u, gamma_rest += u * h;
          sum[i] += u * a, dot[i] += u * h * a;
        }
      }
      grad_beta[g * per + c] = lanes(beta_sum) + beta_rest;
      grad_gamma[g * per + c] = lanes(gamma_sum) + gamma_rest;
    }
    for (int k = 0; k < 2; k++) { // per sample: over the columns, then back to all of them
      float *to = k ? dot : sum;
      for (int b = 0; b < batch; b++) {
        float total = 0;
        for (int q = 0; q < columns; q++) total += to[q * batch + b];
        v[b] = total / count;
      }
      for (int i = 0; i < row; i++) to[i] = v[i % batch];
    }
    for (int c = 0; c < per; c++) {
      const float a = gamma[g * per + c], b = beta[g * per + c];
      for (int r = 0; r < rows; r++) {
        const int64_t from = at + ((int64_t)c * rows + r) * row;
        for (int i = 0; i < row; i++) {
          const float h = (x[from + i] - m[i]) * s[i], u = is_active && h * a + b <= 0 ? 0 : grad[from + i];
          grad_x[from + i] = (u * a - sum[i] - h * dot[i]) * s[i];
        }
      }
    }
  }
}

typedef int8_t bytes __attribute__((vector_size(VL)));
typedef int8_t bytesu __attribute__((vector_size(VL), aligned(1), may_alias));
#define EACH_WINDOW \
  const int out_rows = rows / size, out_columns = columns / size; \
  for (int64_t c = channel0; c < channel1; c++) \
    for (int r = 0; r < out_rows; r++) \
      for (int q = 0; q < out_columns; q++)
#define WINDOW(k) ((c * rows + r * size + (k) / size) * columns + q * size + (k) % size) * batch

// Maximum of size x size windows that do not overlap; which: the place of it in its window, from 0. x: [channels][rows][columns][batch].
void sparcl_max_pool(const float *x, int32_t rows, int32_t columns, int32_t batch, int32_t size, float *out, int8_t *which, int32_t channel0,
                     int32_t channel1) {
  EACH_WINDOW {
    const int64_t at = ((c * out_rows + r) * out_columns + q) * batch;
    int b = 0;
    for (; b + VL <= batch; b += VL) {
      vec most = load(x + WINDOW(0) + b);
      ivec place = {0};
      for (int k = 1; k < size * size; k++) {
        const vec v = load(x + WINDOW(k) + b);
        const ivec is_more = (v > most) | (v != v); // as torch: a NaN wins, and stays
        most = (vec)(((ivec)v & is_more) | ((ivec)most & ~is_more));
        place = (k & is_more) | (place & ~is_more);
      }
      store(out + at + b, most);
      *(bytesu *)(which + at + b) = __builtin_convertvector(place, bytes);
    }
    for (; b < batch; b++) {
      int place = 0;
      for (int k = 1; k < size * size; k++) {
        const float v = x[WINDOW(k) + b];
        if (v > x[WINDOW(place) + b] || v != v) place = k;
      }
      out[at + b] = x[WINDOW(place) + b];
      which[at + b] = (int8_t)place;
    }
  }
}

void sparcl_max_pool_backward(const float *grad, const int8_t *which, int32_t rows, int32_t columns, int32_t batch, int32_t size,
                              float *grad_x, int32_t channel0, int32_t channel1) {
  if (rows % size || columns % size)
    memset(grad_x + (int64_t)channel0 * rows * columns * batch, 0, sizeof(float) * (int64_t)(channel1 - channel0) * rows * columns * batch);
  EACH_WINDOW {
    const int64_t at = ((c * out_rows + r) * out_columns + q) * batch;
    int b = 0;
    for (; b + VL <= batch; b += VL) {
      const vec d = load(grad + at + b);
      const ivec place = __builtin_convertvector((bytes)*(const bytesu *)(which + at + b), ivec);
      for (int k = 0; k < size * size; k++) store(grad_x + WINDOW(k) + b, (vec)((ivec)d & (place == k)));
    }
    for (; b < batch; b++)
      for (int k = 0; k < size * size; k++) grad_x[WINDOW(k) + b] = which[at + b] == k ? grad[at + b] : 0;
  }
}

// The entropy coder of codec/rans.py, to the bit. state: [lanes], in and out; words: room for one per symbol. Returns how many are written.
int64_t sparcl_rans_encode(const uint32_t *freq, const uint32_t *start, int64_t symbols, uint64_t *state, int64_t lanes, uint16_t *words) {
  uint16_t *to = words + symbols; // from the back, so that the decoder reads them in its order
  for (int64_t i = symbols - 1; i >= 0; i--) {
    uint64_t x = state[i % lanes];
    const uint64_t f = freq[i];
    if (x >= f << 20) *--to = (uint16_t)x, x >>= 16;
    state[i % lanes] = (x / f << 12) + x % f + start[i];
  }
  const int64_t count = words + symbols - to;
  memmove(words, to, sizeof(uint16_t) * count);
  return count;
}

// tables, starts: [contexts][4096]; counts: symbols per context. Returns how many words are read, or -1 if there are too few.
int64_t sparcl_rans_decode(const uint16_t *tables, const uint16_t *starts, const int64_t *counts, int64_t contexts, uint64_t *state,
                           int64_t lanes, const uint16_t *words, int64_t available, uint16_t *slots) {
  int64_t used = 0, lane = 0;
  for (int64_t c = 0; c < contexts; c++, tables += 4096, starts += 4096)
    for (int64_t i = 0; i < counts[c]; i++) {
      uint64_t x = state[lane];
      const uint16_t slot = x & 4095;
      *slots++ = slot;
      x = (x >> 12) * tables[slot] + slot - starts[slot];
      if (x < 65536) {
        if (used == available) return -1;
        x = x << 16 | words[used++];
      }
      state[lane] = x;
      if (++lane == lanes) lane = 0;
    }
  return used;
}
