#include "core/validate.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

namespace espace {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
// Elements of an array: its bytes, and those of a copy in double, stay countable.
constexpr int64_t kMostElements = std::numeric_limits<int64_t>::max() / 16;

std::string Text(const Sizes& sizes) {
  if (sizes.axes > Sizes::kMostAxes) return std::to_string(sizes.axes) + " axes";
  std::string text = "[";
  for (int i = 0; i < sizes.axes; ++i) {
    text += (i == 0 ? "" : ",") + std::to_string(sizes.size[i]);
  }
  return text + "]";
}

std::string Must(const std::string& name, const std::string& what, const Sizes& got) {
  return name + " must " + what + ", got " + Text(got);
}

std::string Ranks(const Operands& operands) {
  if (operands.rows.axes != 3) return Must("rows", "be [B, M, C]", operands.rows);
  if (operands.filter && operands.filter->axes != 3) {
    return Must("filter", operands.depthwise ? "be [taps, C, multiplier]" : "be [taps, C, N]",
                *operands.filter);
  }
  if (operands.table.sizes.axes != 2) return Must("table", "be [Q, taps]", operands.table.sizes);
  if (operands.spread && operands.spread->sizes.axes != 1) {
    return Must("spread", "be [R]", operands.spread->sizes);
  }
  return "";
}

// Every size alone. The order of the names is that of the operands.
std::string Ranges(const Operands& operands) {
  struct Size {
    const char* name;
    int64_t size, least;
  };
  const auto find = [](std::initializer_list<Size> sizes) -> std::string {
    for (const Size& one : sizes) {
      if (one.size >= one.least && one.size <= kMost) continue;
      return std::string(one.name) + " must be in [" + std::to_string(one.least) + ", " +
             std::to_string(kMost) + "], got " + std::to_string(one.size);
    }
    return "";
  };
  const auto& rows = operands.rows.size;
  const auto& table = operands.table.sizes.size;
  std::string error = find({{"the batch of rows", rows[0], 0},
                            {"the positions of rows", rows[1], 1},
                            {"the channels of rows", rows[2], 1},
                            {"the rows of table", table[0], 1},
                            {"the taps of table", table[1], 1}});
  if (error.empty() && operands.filter) {
    error = find({{"the taps of filter", operands.filter->size[0], 1},
                  {"the channels of filter", operands.filter->size[1], 1},
                  {"the columns of filter", operands.filter->size[2], 1}});
  }
  if (error.empty() && operands.spread) {
    error = find({{"the length of spread", operands.spread->sizes.size[0], 1}});
  }
  return error;
}

// The operands with each other.
std::string Agreement(const Operands& operands, const ConvShape& shape) {
  if (operands.filter && operands.filter->size[1] != shape.channels) {
    return Must("filter", "have the " + std::to_string(shape.channels) + " channels of rows",
                *operands.filter);
  }
  if (operands.filter && operands.filter->size[0] != shape.taps) {
    return Must("table", "have the " + std::to_string(operands.filter->size[0]) + " taps of filter",
                operands.table.sizes);
  }
  if (shape.filters > kMost) {
    return "filter must give at most " + std::to_string(kMost) + " columns, got " +
           std::to_string(shape.filters);
  }
  if (operands.bias && (operands.bias->axes != 1 || operands.bias->size[0] != shape.filters)) {
    return Must("bias", "be [" + std::to_string(shape.filters) + "]", *operands.bias);
  }
  return "";
}

bool Countable(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product) || product > kMostElements) return false;
  }
  return true;
}

// The arrays that an operator makes: results, and one gradient per computed position.
std::string Products(const ConvShape& s) {
  // Room for the whole vectors of the last columns.
  constexpr int64_t kPadding = 64;
  if (Countable({s.batch, std::max(s.rows_out, s.computed), s.filters + kPadding}) &&
      Countable({s.batch, s.rows_in, std::max(s.channels, s.filters) + kPadding}) &&
      Countable({s.taps, s.channels + kPadding, s.filters + kPadding})) {
    return "";
  }
  return "rows, filter, table and spread must ask for a result that memory can hold, got batch " +
         std::to_string(s.batch) + ", " + std::to_string(s.rows_out) + " output rows and " +
         std::to_string(s.filters) + " columns";
}

std::string Values(const Indices& indices, const char* name, int64_t low, int64_t high) {
  int64_t count = 1;
  for (int i = 0; i < indices.sizes.axes; ++i) count *= indices.sizes.size[i];
  if (AllWithin(indices.values, count, low, high)) return "";
  return std::string(name) + " must hold values in [" + std::to_string(low) + ", " +
         std::to_string(high) + ")";
}

}  // namespace

bool AllWithin(const int32_t* values, int64_t count, int64_t low, int64_t high) {
  // The smallest and the largest in one pass without branches.
  int32_t smallest = std::numeric_limits<int32_t>::max();
  int32_t largest = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < count; ++i) {
    smallest = std::min(smallest, values[i]);
    largest = std::max(largest, values[i]);
  }
  return count == 0 || (smallest >= low && largest < high);
}

std::string ValidateSizes(const Operands& operands, ConvShape* shape) {
  std::string error = Ranks(operands);
  if (error.empty()) error = Ranges(operands);
  if (!error.empty()) return error;
  const auto& rows = operands.rows.size;
  const auto& table = operands.table.sizes.size;
  int64_t filters = rows[2];
  if (operands.filter) filters = operands.filter->size[2] * (operands.depthwise ? rows[2] : 1);
  *shape = {rows[0],  rows[1],  rows[2],
            table[1], table[0], operands.spread ? operands.spread->sizes.size[0] : table[0],
            filters};
  error = Agreement(operands, *shape);
  return error.empty() ? Products(*shape) : error;
}

std::string ValidateIndices(const Operands& operands, const ConvShape& shape) {
  const std::string error = Values(operands.table, "table", -1, shape.rows_in);
  if (!error.empty() || !operands.spread) return error;
  return Values(*operands.spread, "spread", 0, shape.computed);
}

std::string Validate(const Operands& operands, ConvShape* shape) {
  const std::string error = ValidateSizes(operands, shape);
  return error.empty() ? ValidateIndices(operands, *shape) : error;
}

}  // namespace espace
