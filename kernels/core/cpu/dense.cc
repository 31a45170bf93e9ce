#include "core/cpu/dense.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/channels.h"
#include "core/cpu/pointwise.h"

namespace espace {
namespace {

// Images that share one reading of the filter.
constexpr int64_t kBlockImages = 64;
// Sums that stay in the second-level cache while the filter goes by.
constexpr int64_t kMostSums = 1 << 16;
// Rows of the filter that are added at once. For few images they come as fast as memory gives them;
// for more of them the sums had better be read and written less often.
constexpr int64_t kFewRows = 8, kManyRows = 32;
constexpr int64_t kFewImages = 4;
// Rows that are so far apart fall on each other in the first-level cache: for more than a few images
// they are copied next to each other.
constexpr int64_t kFarApart = 512;

void AddRows(const ChannelKernels& kernels, const RowSum<float>& sum) { kernels.add_rows(sum); }
void AddRows(const ChannelKernels& kernels, const RowSum<Half>& sum) { kernels.add_half_rows(sum); }

// Columns of rows of the filter as floats: where they are, or copied.
struct Floats {
  const float* rows[kManyRows];
  int64_t offset;  // added to every pointer
  float copied[kManyRows * kMaxTileColumns];

  // How many columns there may be at most.
  static int64_t Most(int64_t rows) { return kManyRows / rows * kMaxTileColumns; }

  void Take(const ChannelKernels&, const float* const* filter, int64_t count, int64_t column,
            int64_t columns, bool copies) {
    offset = copies ? 0 : column;
    for (int64_t k = 0; k < count; ++k) {
      rows[k] = copies ? copied + k * columns : filter[k];
      if (copies) std::copy_n(filter[k] + column, columns, copied + k * columns);
    }
  }

  void Take(const ChannelKernels& kernels, const Half* const* filter, int64_t count, int64_t column,
            int64_t columns, bool) {
    offset = 0;
    for (int64_t k = 0; k < count; ++k) {
      rows[k] = copied + k * columns;
      kernels.widen(filter[k] + column, columns, copied + k * columns);
    }
  }
};

}  // namespace

// Rows of the filter, and what each image multiplies them by.
template <typename Float>
struct Dense::Rows {
  int64_t count = 0;
  const Float* filter[kManyRows];
  const float* factors[kManyRows];  // one for each image
  float copied[kManyRows * kBlockImages];
};

// Walks over the rows of the filter, without those that only zeros are multiplied by.
template <typename Float>
class Dense::Walk {
 public:
  Walk(const Dense& dense, const Operands<Float>& operands, int64_t begin, int64_t images)
      : shape_(dense.shape_),
        operands_(operands),
        table_(dense.table_),
        begin_(begin),
        images_(images),
        most_(images <= kFewImages ? kFewRows : kManyRows),
        first_copied_(Depth()) {
    // Vectors at the end of the last rows would reach beyond the filter.
    thread_local std::vector<Float> memory;
    const int64_t width = CeilDiv(shape_.filters, dense.variant_.lanes) * dense.variant_.lanes;
    if (width == shape_.filters) return;
    const int64_t last = std::min(CeilDiv(width, shape_.filters), Depth());
    first_copied_ = Depth() - last;
    memory.assign(last * shape_.filters + width, Float{});
    std::copy_n(operands.filter + first_copied_ * shape_.filters, last * shape_.filters,
                memory.data());
    copied_ = memory.data();
  }

  // The next few of them; none at the end.
  void Next(Rows<Float>& rows) {
    rows.count = 0;
    while (rows.count < most_ && tap_ < shape_.taps) {
      const int32_t read = table_[tap_];
      for (; read >= 0 && rows.count < most_ && channel_ < shape_.channels; ++channel_) {
        Take(read, rows);
      }
      if (read < 0 || channel_ == shape_.channels) {
        ++tap_;
        channel_ = 0;
      }
    }
  }

 private:
  int64_t Depth() const { return shape_.taps * shape_.channels; }

  void Take(int32_t read, Rows<Float>& rows) const {
    const float* factors = operands_.in.at(begin_, read) + channel_;
    float* copied = rows.copied + rows.count * images_;
    bool zeros = operands_.skip_zeros;
    for (int64_t i = 0; i < images_; ++i) {
      copied[i] = factors[i * operands_.in.image];
      zeros &= copied[i] == 0.0f;
    }
    if (zeros) return;
    const int64_t row = tap_ * shape_.channels + channel_;
    rows.factors[rows.count] = copied;
    rows.filter[rows.count] =
        row < first_copied_ ? operands_.filter + row * shape_.filters
                            : copied_ + (row - first_copied_) * shape_.filters;
    ++rows.count;
  }

  const ConvShape& shape_;
  const Operands<Float>& operands_;
  const int32_t* const table_;
  const int64_t begin_, images_, most_;
  int64_t first_copied_;  // of the rows that are copied: the last ones, or none
  const Float* copied_ = nullptr;
  int64_t tap_ = 0, channel_ = 0;
};

bool Dense::Suits(const ConvShape& shape, bool spreads, int64_t least_floats) {
  return !spreads && shape.computed == 1 &&
         shape.taps * shape.channels >= CeilDiv(least_floats, shape.filters);
}

Dense::Dense(const Variant& variant, const ConvShape& shape, const int32_t* table)
    : variant_(variant), shape_(shape), table_(table) {}

template <typename Float>
bool Dense::IsFinite(const Float* filter) const {
  bool finite = true;
  for (int64_t i = 0; i < shape_.taps * shape_.channels * shape_.filters; ++i) {
    finite &= espace::IsFinite(filter[i]);
  }
  return finite;
}

template <typename Float>
void Dense::Compute(const Operands<Float>& operands, int64_t begin, int64_t end, int64_t left,
                    int64_t right) const {
  const int64_t blocks = CeilDiv(end - begin, kBlockImages);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = begin + (end - begin) * i / blocks;
    const int64_t images = begin + (end - begin) * (i + 1) / blocks - first;
    const int64_t most = kMostSums / images / kLine * kLine;
    for (int64_t column = left; column < right; column += most) {
      Block(operands, first, images, column, std::min(column + most, right));
    }
  }
}

template <typename Float>
void Dense::Block(const Operands<Float>& operands, int64_t begin, int64_t count, int64_t left,
                  int64_t right) const {
  thread_local std::vector<float> memory;
  thread_local std::vector<Rows<Float>> rows(2);
  const int64_t columns = CeilDiv(right - left, variant_.lanes) * variant_.lanes;
  float* sums = Lined(memory, count * columns);
  for (int64_t i = 0; i < count; ++i) {
    std::fill_n(sums + i * columns, columns, 0.0f);
    std::copy_n(operands.bias + left, right - left, sums + i * columns);
  }
  Walk<Float> walk(*this, operands, begin, count);
  Rows<Float> *own = &rows[0], *next = &rows[1];
  walk.Next(*own);
  while (own->count > 0) {
    walk.Next(*next);
    Add(*own, *next, count, left, columns, sums);
    std::swap(own, next);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* sum = sums + i * columns;
    variant_.pointwise.multiply({&sum, 1}, operands.low, operands.high, right - left,
                                operands.out.at(begin + i, 0) + left);
  }
}

// Adds rows of the filter to the sums, and asks memory for the next ones.
template <typename Float>
void Dense::Add(const Rows<Float>& rows, const Rows<Float>& next, int64_t count, int64_t left,
                int64_t columns, float* sums) const {
  const ChannelKernels& kernels = variant_.channels;
  if (count == 1) {
    return AddRows(kernels, RowSum<Float>{rows.filter, rows.factors, rows.count, next.filter,
                                          next.count, left, columns, sums});
  }
  thread_local Floats floats;
  const int64_t widest = variant_.tile_vectors * variant_.lanes;
  const int64_t most = Floats::Most(rows.count);
  const bool copies = count > kFewImages && shape_.filters >= kFarApart;
  for (int64_t begin = 0; begin < columns; begin += most) {
    const int64_t end = std::min(begin + most, columns);
    floats.Take(kernels, rows.filter, rows.count, left + begin, end - begin, copies);
    for (int64_t column = begin; column < end; column += widest) {
      const int64_t width = std::min(widest, end - column);
      for (int64_t k = 0; k < next.count; ++k) {
        for (int64_t n = 0; n < width; n += kLineBytes / sizeof(Float)) {
          __builtin_prefetch(next.filter[k] + left + column + n, 0, 2);
        }
      }
      const int vectors = static_cast<int>(width / variant_.lanes);
      const int64_t height = variant_.rows(vectors);
      for (int64_t image = 0; image < count; image += height) {
        const int images = static_cast<int>(std::min(height, count - image));
        variant_.outer(images, vectors)({rows.factors, floats.rows, image,
                                         floats.offset + column - begin, rows.count,
                                         sums + image * columns + column, columns});
      }
    }
  }
}

template bool Dense::IsFinite(const float*) const;
template bool Dense::IsFinite(const Half*) const;
template void Dense::Compute(const Operands<float>&, int64_t, int64_t, int64_t, int64_t) const;
template void Dense::Compute(const Operands<Half>&, int64_t, int64_t, int64_t, int64_t) const;

}  // namespace espace
