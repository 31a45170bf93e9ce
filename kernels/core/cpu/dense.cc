#include "core/cpu/dense.h"

#include <algorithm>
#include <cstring>
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

}  // namespace

// Rows of the filter, and what each image multiplies them by.
struct Dense::Rows {
  int64_t count = 0;
  const float* filter[kManyRows];
  const float* factors[kManyRows];  // one for each image
  float copied[kManyRows * kBlockImages];
};

// Walks over the rows of the filter, without those that only zeros are multiplied by.
class Dense::Walk {
 public:
  Walk(const Dense& dense, const Operands& operands, int64_t begin, int64_t images)
      : shape_(dense.shape_),
        operands_(operands),
        table_(dense.table_),
        begin_(begin),
        images_(images),
        most_(images <= kFewImages ? kFewRows : kManyRows) {
    // A vector at the end of the last row would reach beyond the filter.
    thread_local std::vector<float> memory;
    const int64_t width = CeilDiv(shape_.filters, dense.variant_.lanes) * dense.variant_.lanes;
    if (width == shape_.filters) return;
    last_ = Scratch(memory, width);
    std::copy_n(operands.filter + (Depth() - 1) * shape_.filters, shape_.filters, last_);
    std::fill(last_ + shape_.filters, last_ + width, 0.0f);
  }

  // The next few of them; none at the end.
  void Next(Rows& rows) {
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

  void Take(int32_t read, Rows& rows) const {
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
        last_ != nullptr && row + 1 == Depth() ? last_ : operands_.filter + row * shape_.filters;
    ++rows.count;
  }

  const ConvShape& shape_;
  const Operands& operands_;
  const int32_t* const table_;
  const int64_t begin_, images_, most_;
  float* last_ = nullptr;
  int64_t tap_ = 0, channel_ = 0;
};

bool Dense::Suits(const ConvShape& shape, bool spreads, int64_t least_floats) {
  return !spreads && shape.computed == 1 &&
         shape.taps * shape.channels >= CeilDiv(least_floats, shape.filters);
}

Dense::Dense(const Variant& variant, const ConvShape& shape, const int32_t* table)
    : variant_(variant), shape_(shape), table_(table) {}

bool Dense::IsFinite(const float* filter) const {
  constexpr uint32_t kExponent = 0xffu << 23;  // all ones in infinities and in what is no number
  bool found = false;
  for (int64_t i = 0; i < shape_.taps * shape_.channels * shape_.filters; ++i) {
    uint32_t bits;
    std::memcpy(&bits, filter + i, sizeof(bits));
    found |= (bits & kExponent) == kExponent;
  }
  return !found;
}

void Dense::Compute(const Operands& operands, int64_t begin, int64_t end, int64_t left,
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

void Dense::Block(const Operands& operands, int64_t begin, int64_t count, int64_t left,
                  int64_t right) const {
  thread_local std::vector<float> memory;
  thread_local std::vector<Rows> rows(2);
  const int64_t columns = CeilDiv(right - left, variant_.lanes) * variant_.lanes;
  float* sums = Lined(memory, count * columns);
  for (int64_t i = 0; i < count; ++i) {
    std::fill_n(sums + i * columns, columns, 0.0f);
    std::copy_n(operands.bias + left, right - left, sums + i * columns);
  }
  Walk walk(*this, operands, begin, count);
  Rows *own = &rows[0], *next = &rows[1];
  walk.Next(*own);
  while (own->count > 0) {
    walk.Next(*next);
    Add(*own, *next, count, left, columns, sums);
    std::swap(own, next);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* sum = sums + i * columns;
    PointwiseOf(variant_).multiply({&sum, 1}, operands.low, operands.high, right - left,
                                   operands.out.at(begin + i, 0) + left);
  }
}

// Adds rows of the filter to the sums, and asks memory for the next ones.
void Dense::Add(const Rows& rows, const Rows& next, int64_t count, int64_t left, int64_t columns,
                float* sums) const {
  if (count == 1) {
    return ChannelsOf(variant_).add_rows(
        {rows.filter, rows.factors, rows.count, next.filter, next.count, left, columns, sums});
  }
  const int64_t widest = variant_.tile_vectors * variant_.lanes;
  for (int64_t column = 0; column < columns; column += widest) {
    const int64_t width = std::min(widest, columns - column);
    const int vectors = static_cast<int>(width / variant_.lanes), most = variant_.rows(vectors);
    for (int64_t k = 0; k < next.count; ++k) {
      for (int64_t n = 0; n < width; n += kLine) {
        __builtin_prefetch(next.filter[k] + left + column + n, 0, 2);
      }
    }
    for (int64_t image = 0; image < count; image += most) {
      const int images = static_cast<int>(std::min<int64_t>(most, count - image));
      variant_.outer(images, vectors)({rows.factors, rows.filter, image, left + column, rows.count,
                                       sums + image * columns + column, columns});
    }
  }
}

}  // namespace espace
