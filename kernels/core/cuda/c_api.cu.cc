#include "core/cuda/c_api.h"

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "core/cuda/masked_conv2d.h"

// Sizes of the map, and one allocation on the GPU: table, then starts and shown if there is a
// spread.
struct EspaceCudaMap {
  int64_t computed, taps, rows_in, rows_out;
  bool spread;
  int device, multiprocessors;
  int32_t* memory;
};

namespace {

using espace::CudaCall;

thread_local std::string error;

int Refuse(int code, const std::string& why) {
  error = why;
  return code;
}

int Invalid(const std::string& why) { return Refuse(ESPACE_INVALID, why); }

int Check(espace::Status status) {
  return status == espace::kOk ? ESPACE_OK : Refuse(ESPACE_CUDA, espace::Describe(status));
}

// Nothing may be thrown through C.
template <typename Body>
int Guard(const Body& body) {
  try {
    error.clear();
    return body();
  } catch (const std::bad_alloc&) {
    return Refuse(ESPACE_MEMORY, "no memory");  // short enough to need none
  }
}

int CheckRange(const char* name, const int32_t* values, int64_t count, int64_t low, int64_t high) {
  const auto [least, most] = std::minmax_element(values, values + count);
  if (*least >= low && *most < high) return ESPACE_OK;
  return Invalid(std::string(name) + " must hold values in [" + std::to_string(low) + ", " +
                 std::to_string(high) + "). Received: " + std::to_string(*least) + " to " +
                 std::to_string(*most));
}

int CheckMap(const int32_t* table, const int32_t* spread, const EspaceCudaMap& map) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 4096;
  const struct {
    const char* name;
    int64_t size;
  } sizes[] = {{"computed", map.computed},
               {"taps", map.taps},
               {"rows_in", map.rows_in},
               {"rows_out", map.rows_out}};
  for (const auto& [name, size] : sizes) {
    if (size >= 1 && size <= kMost) continue;
    return Invalid(std::string(name) +
                   " must be in [1, 2^31 - 4096]. Received: " + std::to_string(size));
  }
  if (table == nullptr) return Invalid("table must not be null");
  if (map.computed > (int64_t{1} << 40) / map.taps) return Invalid("table is too large");
  if (spread == nullptr && map.rows_out != map.computed) {
    return Invalid("rows_out must equal computed when spread is null. Received: " +
                   std::to_string(map.rows_out) + " and " + std::to_string(map.computed));
  }
  const int code = CheckRange("table", table, map.computed * map.taps, -1, map.rows_in);
  if (code != ESPACE_OK || spread == nullptr) return code;
  return CheckRange("spread", spread, map.rows_out, 0, map.computed);
}

// table, starts and shown as they lie on the GPU.
std::vector<int32_t> Join(const int32_t* table, const int32_t* spread, const EspaceCudaMap& map) {
  const int64_t size = map.computed * map.taps;
  std::vector<int32_t> joined(table, table + size);
  if (spread != nullptr) {
    joined.resize(size + map.computed + 1 + map.rows_out);
    espace::InvertSpread(spread, map.rows_out, map.computed, joined.data() + size,
                         joined.data() + size + map.computed + 1);
  }
  return joined;
}

int Upload(const std::vector<int32_t>& joined, EspaceCudaMap* map) {
  if (const int code = Check(espace::CurrentDevice(&map->device))) return code;
  if (const int code = Check(espace::Multiprocessors(map->device, &map->multiprocessors))) {
    return code;
  }
  return Check(espace::Upload(joined.data(), static_cast<int64_t>(joined.size()), &map->memory));
}

int CheckNumbers(const EspaceCudaCall& from) {
  const struct {
    const char* name;
    int32_t value, most;
  } choices[] = {{"operation", from.operation, 3},
                 {"type", from.type, 2},
                 {"activation", from.activation, from.operation < 2 ? 2 : 0},
                 {"allow_tf32", from.allow_tf32, 1}};
  for (const auto& [name, value, most] : choices) {
    if (value < 0 || value > most) {
      return Invalid(std::string(name) + " must be in [0, " + std::to_string(most) +
                     "]. Received: " + std::to_string(value));
    }
  }
  return ESPACE_OK;
}

// The call in the terms of the kernels, once its numbers are known to be good.
int Translate(const EspaceCudaMap* map, const EspaceCudaCall* from, CudaCall* to) {
  if (map == nullptr || from == nullptr) return Invalid("map and call must not be null");
  if (const int code = CheckNumbers(*from)) return code;
  to->operation = static_cast<espace::Operation>(from->operation);
  to->type = static_cast<espace::DataType>(from->type);
  to->activation = static_cast<espace::Activation>(from->activation);
  to->allow_tf32 = from->allow_tf32 != 0;
  to->multiprocessors = map->multiprocessors;
  to->shape = {from->batch,   map->rows_in,  from->channels, map->taps,
               map->computed, map->rows_out, from->filters};
  if (const char* why = espace::CheckSizes(to->operation, to->shape)) return Invalid(why);
  to->table = map->memory;
  if (map->spread) {
    to->starts = map->memory + map->computed * map->taps;
    to->shown = to->starts + map->computed + 1;
  }
  to->rows = from->rows;
  to->filter = from->filter;
  to->bias = from->operation < 2 ? from->bias : nullptr;
  to->out = from->out;
  to->grad_out = from->grad_out;
  to->grad_rows = from->grad_rows;
  to->grad_filter = from->operation < 2 ? from->grad_filter : nullptr;
  to->grad_bias = from->operation < 2 ? from->grad_bias : nullptr;
  return ESPACE_OK;
}

int CheckPointers(const CudaCall& call, bool gradients) {
  const bool filter = call.operation < espace::Operation::kMaximum;
  const bool out = !gradients || call.activation != espace::Activation::kNone;
  const struct {
    const char* name;
    const void* pointer;
    bool needed;
  } pointers[] = {{"rows", call.rows, true},
                  {"filter", call.filter, filter},
                  {"bias", call.bias, false},
                  {"out", call.out, out},
                  {"grad_out", call.grad_out, gradients},
                  {"grad_rows", call.grad_rows, false},
                  {"grad_filter", call.grad_filter, false},
                  {"grad_bias", call.grad_bias, false}};
  const uintptr_t size = call.type == espace::DataType::kFloat32 ? 4 : 2;
  for (const auto& [name, pointer, needed] : pointers) {
    if (pointer == nullptr && needed && call.shape.batch > 0) {
      return Invalid(std::string(name) + " must not be null");
    }
    if (reinterpret_cast<uintptr_t>(pointer) % size != 0) {
      return Invalid(std::string(name) + " must be aligned to its elements of " +
                     std::to_string(size) + " bytes");
    }
  }
  return ESPACE_OK;
}

int CheckScratch(const EspaceCudaCall& from, int64_t needed) {
  if (needed > 0 && (from.scratch == nullptr || from.scratch_bytes < needed)) {
    return Invalid("scratch must have " + std::to_string(needed) + " bytes. Received: " +
                   std::to_string(from.scratch == nullptr ? 0 : from.scratch_bytes));
  }
  if (reinterpret_cast<uintptr_t>(from.scratch) % espace::kChunkBytes != 0) {
    return Invalid("scratch must be aligned to 16 bytes");
  }
  return ESPACE_OK;
}

int Run(const EspaceCudaMap* map, const EspaceCudaCall* from, bool gradients, void* stream) {
  return Guard([&] {
    CudaCall call;
    if (const int code = Translate(map, from, &call)) return code;
    if (const int code = CheckPointers(call, gradients)) return code;
    const int64_t needed = gradients ? espace::GradientScratch(call) : espace::ForwardScratch(call);
    if (const int code = CheckScratch(*from, needed)) return code;
    int device = 0;
    if (const int code = Check(espace::CurrentDevice(&device))) return code;
    if (device != map->device) {
      return Invalid("the map is on device " + std::to_string(map->device) +
                     ", the current one is " + std::to_string(device));
    }
    const auto queue = static_cast<espace::Stream>(stream);
    return Check(gradients ? espace::CudaGradients(call, from->scratch, queue)
                           : espace::CudaForward(call, from->scratch, queue));
  });
}

}  // namespace

extern "C" {

int espace_cuda_map_create(const int32_t* table, int64_t computed, int64_t taps, int64_t rows_in,
                           const int32_t* spread, int64_t rows_out, EspaceCudaMap** map) {
  return Guard([&] {
    if (map == nullptr) return Invalid("map must not be null");
    *map = nullptr;
    EspaceCudaMap made{computed, taps, rows_in, rows_out, spread != nullptr, 0, 0, nullptr};
    if (const int code = CheckMap(table, spread, made)) return code;
    if (const int code = Upload(Join(table, spread, made), &made)) return code;
    *map = new (std::nothrow) EspaceCudaMap(made);
    if (*map != nullptr) return static_cast<int>(ESPACE_OK);
    espace::Free(made.memory);
    return Refuse(ESPACE_MEMORY, "no memory for the map");
  });
}

int espace_cuda_map_free(EspaceCudaMap* map) {
  return Guard([&] {
    if (map == nullptr) return static_cast<int>(ESPACE_OK);
    const espace::Status status = espace::Free(map->memory);
    delete map;
    return Check(status);
  });
}

int espace_cuda_scratch(const EspaceCudaMap* map, const EspaceCudaCall* call, int32_t gradients,
                        int64_t* bytes) {
  return Guard([&] {
    CudaCall translated;
    if (bytes == nullptr) return Invalid("bytes must not be null");
    if (const int code = Translate(map, call, &translated)) return code;
    *bytes =
        gradients != 0 ? espace::GradientScratch(translated) : espace::ForwardScratch(translated);
    return static_cast<int>(ESPACE_OK);
  });
}

int espace_cuda_forward(const EspaceCudaMap* map, const EspaceCudaCall* call, void* stream) {
  return Run(map, call, false, stream);
}

int espace_cuda_gradients(const EspaceCudaMap* map, const EspaceCudaCall* call, void* stream) {
  return Run(map, call, true, stream);
}

const char* espace_cuda_error(void) { return error.c_str(); }

}  // extern "C"
