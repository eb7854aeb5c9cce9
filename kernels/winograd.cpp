// Convolutions of 3 x 3, stride 1, by Winograd's F(4 x 4, 3 x 3). The formulas are in winograd.py.
//
// Tensors are of type T, float32 or bfloat16, and channels last; all is computed in float32. C is the number of input channels,
// K of filters; both are multiples of `lanes`. A tile is 4 x 4 pixels of the output, or the 6 x 6 of the input that they depend
// on. Each thread takes blocks of tiles through all three stages, so that transformed tiles stay in its second-level cache:
//
//     inputs[tile][point][C]  * weights[point][C][K]  ->  products[tile][point][K]         for each of 36 points

#include <algorithm>
#include <cstdint>
#include <omp.h>
#include <type_traits>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

namespace {

constexpr int lanes = LANES;                  // floats in a vector register
constexpr int points = 36;                    // entries of a transformed tile
constexpr int accumulators = lanes == 8 ? 12 : 24;  // of a product of matrices: with AVX2 there are 16 registers, else 32
constexpr int64_t block = 24;                 // tiles that a thread takes at once: a multiple of accumulators / 3
constexpr int64_t gradient_block = lanes == 8 ? 24 : 48;  // the same for gradients by parameters, at most

typedef float Vector __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

struct bfloat16 {  // the upper half of a float
    uint16_t bits;
};

typedef uint32_t Bits __attribute__((vector_size(4 * lanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * lanes), aligned(2), may_alias));

inline Vector load(const bfloat16* from) {
    return (Vector)(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}
inline void store(bfloat16* to, Vector value) {  // rounded to the nearest, of two as near to the even one
    const Bits bits = (Bits)value, rounded = bits + 0x7fff + (bits >> 16 & 1), nan = (Bits{} + 0x7fc0) << 16;
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector((value == value ? rounded : nan) >> 16, Halves);
}

// The transforms by one dimension: y = M x, of vectors that lie STRIDE apart in x.

struct BT {  // 6 -> 6, of the input
    static constexpr int from = 6, to = 6;
    template <int STRIDE> static void apply(const Vector* x, Vector* y) {
        const Vector x0 = x[0], x1 = x[STRIDE], x2 = x[2 * STRIDE], x3 = x[3 * STRIDE], x4 = x[4 * STRIDE];
        const Vector a = x4 - 4.f * x2, b = x3 - 4.f * x1, c = x4 - x2, d = 2.f * (x3 - x1);
        y[0] = 4.f * x0 - 5.f * x2 + x4;
        y[1] = a + b;
        y[2] = a - b;
        y[3] = c + d;
        y[4] = c - d;
        y[5] = 4.f * x1 - 5.f * x3 + x[5 * STRIDE];
    }
};

struct AT {  // 6 -> 4, to the output
    static constexpr int from = 6, to = 4;
    template <int STRIDE> static void apply(const Vector* x, Vector* y) {
        const Vector x1 = x[STRIDE], x2 = x[2 * STRIDE], x3 = x[3 * STRIDE], x4 = x[4 * STRIDE];
        const Vector a = x1 + x2, b = x1 - x2, c = x3 + x4, d = x3 - x4;
        y[0] = x[0] + a + c;
        y[1] = b + 2.f * d;
        y[2] = a + 4.f * c;
        y[3] = b + 8.f * d + x[5 * STRIDE];
    }
};

struct A {  // 4 -> 6, of the output's gradient
    static constexpr int from = 4, to = 6;
    template <int STRIDE> static void apply(const Vector* x, Vector* y) {
        const Vector x0 = x[0], x1 = x[STRIDE], x2 = x[2 * STRIDE], x3 = x[3 * STRIDE];
        const Vector a = x0 + x2, b = x1 + x3, c = x0 + 4.f * x2, d = 2.f * x1 + 8.f * x3;
        y[0] = x0;
        y[1] = a + b;
        y[2] = a - b;
        y[3] = c + d;
        y[4] = c - d;
        y[5] = x3;
    }
};

struct G {  // 3 -> 6, of the weights
    static constexpr int from = 3, to = 6;
    template <int STRIDE> static void apply(const Vector* x, Vector* y) {
        const Vector x0 = x[0], x1 = x[STRIDE], x2 = x[2 * STRIDE], a = x0 + x2, b = x0 + 4.f * x2;
        y[0] = x0 * (1.f / 4);
        y[1] = (a + x1) * (-1.f / 6);
        y[2] = (a - x1) * (-1.f / 6);
        y[3] = (b + 2.f * x1) * (1.f / 24);
        y[4] = (b - 2.f * x1) * (1.f / 24);
        y[5] = x2;
    }
};

struct GT {  // 6 -> 3, to the weights' gradient
    static constexpr int from = 6, to = 3;
    template <int STRIDE> static void apply(const Vector* x, Vector* y) {
        const Vector x1 = x[STRIDE], x2 = x[2 * STRIDE], x3 = x[3 * STRIDE], x4 = x[4 * STRIDE];
        const Vector a = x1 + x2, b = x3 + x4;
        y[0] = x[0] * (1.f / 4) - a * (1.f / 6) + b * (1.f / 24);
        y[1] = (x2 - x1) * (1.f / 6) + (x3 - x4) * (1.f / 12);
        y[2] = (b - a) * (1.f / 6) + x[5 * STRIDE];
    }
};

// M X M^T, both row by row.
template <class M> inline void transform(const Vector* x, Vector* y) {
    Vector half[M::from * M::to];  // its transpose is M X
    for (int j = 0; j < M::from; ++j) M::template apply<M::from>(x + j, half + j * M::to);
    for (int i = 0; i < M::to; ++i) M::template apply<M::to>(half + i, y + i * M::to);
}

// Where the pixels of tiles of images (N, height, width, channels) lie; those outside are at `outside`.
template <class T> struct Tiles {
    T* images;
    T* outside;
    int64_t height, width, channels, down, across;  // `down` x `across` tiles an image

    template <int SIZE> void pixels(int64_t tile, int64_t padding, T** at) const {
        const int64_t image = tile / (down * across), top = tile / across % down * 4 - padding;
        const int64_t left = tile % across * 4 - padding;
        for (int i = 0; i < SIZE; ++i)
            for (int j = 0; j < SIZE; ++j) {
                const int64_t y = top + i, x = left + j;
                const bool inside = y >= 0 && y < height && x >= 0 && x < width;
                at[i * SIZE + j] = inside ? images + ((image * height + y) * width + x) * channels : outside;
            }
    }
};

// Read a tile, transform it by M, and write its points.
template <class M, class T> void read_tile(const Tiles<const T>& tiles, int64_t tile, int64_t padding, float* to) {
    const T* at[M::from * M::from];
    tiles.template pixels<M::from>(tile, padding, at);
    for (int64_t c = 0; c < tiles.channels; c += lanes) {
        Vector x[M::from * M::from], y[points];
        for (int i = 0; i < M::from * M::from; ++i) x[i] = load(at[i] + c);
        transform<M>(x, y);
        for (int i = 0; i < points; ++i) store(to + i * tiles.channels + c, y[i]);
    }
}

// Transform products back, add the bias, and write those pixels that exist.
template <class T> void write_tile(const Tiles<T>& tiles, int64_t tile, const float* products, const T* bias) {
    T* at[16];
    tiles.template pixels<4>(tile, 0, at);
    for (int64_t k = 0; k < tiles.channels; k += lanes) {
        Vector x[points], y[16];
        for (int i = 0; i < points; ++i) x[i] = load(products + i * tiles.channels + k);
        transform<AT>(x, y);
        const Vector b = bias ? load(bias + k) : Vector{};
        for (int i = 0; i < 16; ++i) store(at[i] + k, y[i] + b);
    }
}

// The products of matrices of one point. Rows of `a` and `b` (or `out`) of two tiles lie points * C and points * K apart.

// out (tiles x K) = a (tiles x C) weights (C x K), for R tiles and N vectors of filters
template <int R, int N> void product(const float* a, const float* weights, float* out, int64_t C, int64_t K) {
    Vector sums[R][N] = {};
    for (int64_t c = 0; c < C; ++c) {
        Vector w[N];
        for (int n = 0; n < N; ++n) w[n] = load(weights + c * K + n * lanes);
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) sums[r][n] += a[r * points * C + c] * w[n];
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) store(out + r * points * K + n * lanes, sums[r][n]);
}

template <int N> void product_of_all(const float* a, const float* w, float* out, int64_t tiles, int64_t C, int64_t K) {
    constexpr int R = accumulators / std::max(N, 2);
    int64_t t = 0;
    for (; t + R <= tiles; t += R) product<R, N>(a + t * points * C, w, out + t * points * K, C, K);
    for (; t < tiles; ++t) product<1, N>(a + t * points * C, w, out + t * points * K, C, K);
}

// sums (C x K) += a^T (C x tiles) b (tiles x K), for R channels and N vectors of filters
template <int R, int N> void outer(const float* a, const float* b, float* out, int64_t tiles, int64_t C, int64_t K) {
    Vector sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = load(out + r * K + n * lanes);
    for (int64_t t = 0; t < tiles; ++t) {
        Vector v[N];
        for (int n = 0; n < N; ++n) v[n] = load(b + t * points * K + n * lanes);
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) sums[r][n] += a[t * points * C + r] * v[n];
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) store(out + r * K + n * lanes, sums[r][n]);
}

template <int N> void outer_of_all(const float* a, const float* b, float* out, int64_t tiles, int64_t C, int64_t K) {
    constexpr int R = accumulators / std::max(N, 2);
    int64_t c = 0;
    for (; c + R <= C; c += R) outer<R, N>(a + c, b, out + c * K, tiles, C, K);
    for (; c < C; c += 2) outer<2, N>(a + c, b, out + c * K, tiles, C, K);
}

// G w G^T of all weights (K, C, 3, 3), which lie `strides` apart, to (points, C, K)
template <class T> void transform_weights(const T* weight, const int64_t* strides, float* to, int64_t C, int64_t K) {
#pragma omp for collapse(2) schedule(static)
    for (int64_t line = 0; line < K; line += 16)  // 16 floats are a line of the cache
        for (int64_t c = 0; c < C; ++c)
            for (int64_t k = line; k < std::min(line + 16, K); k += lanes) {
                Vector w[9], y[points];
                for (int i = 0; i < 9; ++i) {
                    const T* tap = weight + k * strides[0] + c * strides[1] + i / 3 * strides[2] + i % 3 * strides[3];
                    T taps[lanes];
                    for (int lane = 0; lane < lanes; ++lane) taps[lane] = tap[lane * strides[0]];
                    w[i] = load(taps);
                }
                transform<G>(w, y);
                for (int i = 0; i < points; ++i) store(to + (i * C + c) * K + k, y[i]);
            }
}

// Floats of scratch memory of one thread: `tiles` of C and of K channels, transformed, and one pixel of each.
int64_t own_scratch(int64_t tiles, int64_t C, int64_t K) { return (tiles * points + 1) * (C + K); }

// Calls take(n, k) for every n vectors of K channels, from the k-th on; n is a constant.
template <class F> void in_columns(int64_t K, F take) {
    int64_t k = 0;
    if (K % (3 * lanes) == 0)
        for (; k < K; k += 3 * lanes) take(std::integral_constant<int, 3>{}, k);
    for (; k + 2 * lanes <= K; k += 2 * lanes) take(std::integral_constant<int, 2>{}, k);
    if (k < K) take(std::integral_constant<int, 1>{}, k);
}

// y (N, out_h, out_w, K) = conv(x (N, height, width, C), weight) + bias; weight by strides, bias may be null.
template <class T>
void convolution(const T* x, const T* weight, const int64_t* strides, const T* bias, T* y, float* scratch, int64_t N,
                 int64_t height, int64_t width, int64_t C, int64_t out_h, int64_t out_w, int64_t K, int64_t padding,
                 int64_t threads) {
    const int64_t down = (out_h + 3) / 4, across = (out_w + 3) / 4, tiles = N * down * across;
    float* const weights = scratch;
#pragma omp parallel num_threads(threads)
    {
        float* const inputs = weights + points * C * K + omp_get_thread_num() * own_scratch(block, C, K);
        float* const products = inputs + block * points * C;
        T *const zeros = reinterpret_cast<T*>(products + block * points * K), *const ignored = zeros + C;
        std::fill_n(zeros, C, T{});
        const Tiles<const T> from{x, zeros, height, width, C, down, across};
        const Tiles<T> to{y, ignored, out_h, out_w, K, down, across};
        transform_weights(weight, strides, weights, C, K);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles; first += block) {
            const int64_t count = std::min(block, tiles - first);
            for (int64_t t = 0; t < count; ++t) read_tile<BT>(from, first + t, padding, &inputs[t * points * C]);
            for (int64_t i = 0; i < points; ++i) {
                const float *a = &inputs[i * C], *w = &weights[i * C * K];
                float* out = &products[i * K];
                in_columns(K, [=](auto n, int64_t k) { product_of_all<n>(a, w + k, out + k, count, C, K); });
            }
            for (int64_t t = 0; t < count; ++t) write_tile(to, first + t, &products[t * points * K], bias);
        }
    }
}

// The gradients of the convolution by its weight (K, C, 3, 3), by strides, and by its bias (K,), from that of its output.
template <class T>
void parameter_gradients(const T* grad_output, const T* x, T* d_weight, const int64_t* strides, T* d_bias, float* scratch,
                         int64_t N, int64_t height, int64_t width, int64_t C, int64_t out_h, int64_t out_w, int64_t K,
                         int64_t padding, int64_t threads) {
    const int64_t down = (out_h + 3) / 4, across = (out_w + 3) / 4, tiles = N * down * across;
    const int64_t rounds = (tiles + threads * gradient_block - 1) / (threads * gradient_block);  // blocks of each thread
    const int64_t block = rounds ? (tiles + threads * rounds - 1) / (threads * rounds) : 1;
    const int64_t size = K + points * C * K;  // sums by biases and by weights, of each thread
    float* const sums = scratch;
    std::fill_n(sums, size * threads, 0.f);
#pragma omp parallel num_threads(threads)
    {
        float* const inputs = sums + size * threads + omp_get_thread_num() * own_scratch(gradient_block, C, K);
        float* const outputs = inputs + block * points * C;
        T* const zeros = reinterpret_cast<T*>(outputs + block * points * K);
        std::fill_n(zeros, std::max(C, K), T{});
        const Tiles<const T> from{x, zeros, height, width, C, down, across};
        const Tiles<const T> to{grad_output, zeros, out_h, out_w, K, down, across};
        float* const own = sums + size * omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles; first += block) {
            const int64_t count = std::min(block, tiles - first);
            for (int64_t t = 0; t < count; ++t) {
                read_tile<BT>(from, first + t, padding, &inputs[t * points * C]);
                read_tile<A>(to, first + t, 0, &outputs[t * points * K]);
                const float* total = &outputs[(t * points + 7) * K];  // A has a row of ones: point (1, 1) is a tile's sum
                for (int64_t k = 0; k < K; k += lanes) store(own + k, load(own + k) + load(total + k));
            }
            for (int64_t i = 0; i < points; ++i) {
                const float *a = &inputs[i * C], *b = &outputs[i * K];
                float* out = own + K + i * C * K;
                in_columns(K, [=](auto n, int64_t k) { outer_of_all<n>(a, b + k, out + k, count, C, K); });
            }
        }
#pragma omp single nowait
        for (int64_t k = 0; k < K; k += lanes) {
            Vector total = {};
            for (int64_t thread = 0; thread < threads; ++thread) total += load(&sums[size * thread + k]);
            store(d_bias + k, total);
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t line = 0; line < K; line += 16)
            for (int64_t c = 0; c < C; ++c)
                for (int64_t k = line; k < std::min(line + 16, K); k += lanes) {
                    Vector total[points] = {}, w[9];
                    for (int64_t thread = 0; thread < threads; ++thread)
                        for (int i = 0; i < points; ++i) total[i] += load(&sums[size * thread + K + (i * C + c) * K + k]);
                    transform<GT>(total, w);
                    for (int i = 0; i < 9; ++i) {
                        T* tap = d_weight + k * strides[0] + c * strides[1] + i / 3 * strides[2] + i % 3 * strides[3];
                        T taps[lanes];
                        store(taps, w[i]);
                        for (int lane = 0; lane < lanes; ++lane) tap[lane * strides[0]] = taps[lane];
                    }
                }
    }
}

}  // namespace

extern "C" int fastgat_lanes() { return lanes; }

// Floats of scratch memory that the two functions need.
extern "C" int64_t fastgat_convolution_scratch(int64_t C, int64_t K, int64_t threads) {
    return points * C * K + threads * own_scratch(block, C, K);
}
extern "C" int64_t fastgat_parameter_gradients_scratch(int64_t C, int64_t K, int64_t threads) {
    return threads * (points * C * K + K + own_scratch(gradient_block, C, K));
}

// The two functions above, for tensors of bfloat16 or float32.
extern "C" void fastgat_convolution(const void* x, const void* weight, const int64_t* strides, const void* bias, void* y,
                                    float* scratch, int64_t N, int64_t height, int64_t width, int64_t C, int64_t out_h, int64_t out_w,
                                    int64_t K, int64_t padding, int64_t threads, int64_t is_bfloat16) {
    const auto compute = [=](auto zero) {
        using T = decltype(zero);
        convolution(static_cast<const T*>(x), static_cast<const T*>(weight), strides, static_cast<const T*>(bias),
                    static_cast<T*>(y), scratch, N, height, width, C, out_h, out_w, K, padding, threads);
    };
    is_bfloat16 ? compute(bfloat16{}) : compute(0.f);
}
extern "C" void fastgat_parameter_gradients(const void* grad_output, const void* x, void* d_weight, const int64_t* strides,
                                            void* d_bias, float* scratch, int64_t N, int64_t height, int64_t width, int64_t C,
                                            int64_t out_h, int64_t out_w, int64_t K, int64_t padding, int64_t threads,
                                            int64_t is_bfloat16) {
    const auto compute = [=](auto zero) {
        using T = decltype(zero);
        parameter_gradients(static_cast<const T*>(grad_output), static_cast<const T*>(x), static_cast<T*>(d_weight), strides,
                            static_cast<T*>(d_bias), scratch, N, height, width, C, out_h, out_w, K, padding, threads);
    };
    is_bfloat16 ? compute(bfloat16{}) : compute(0.f);
}
