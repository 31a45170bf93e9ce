// The C interface on the emulated GPU.
#include <cstdio>
#include <cstring>
#include <string>

#include "core/cuda/c_api.h"

namespace {

int64_t failures = 0, cases = 0;

void Expect(bool holds, const std::string& what) {
  ++cases;
  if (holds) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

// The C interface refuses in words, and computes.
void CheckInterface() {
  const int32_t table[] = {0, 1, -1, 2}, wild[] = {0, 3}, spread[] = {1, 0, 1};
  EspaceCudaMap* map = nullptr;
  const auto refused = [](int code, const char* words) {
    return code == ESPACE_INVALID && std::strstr(espace_cuda_error(), words) != nullptr;
  };
  Expect(refused(espace_cuda_map_create(wild, 1, 2, 3, nullptr, 1, &map), "table must hold"),
         "a wild table");
  Expect(refused(espace_cuda_map_create(table, 2, 2, 3, wild, 2, &map), "spread must hold"),
         "a wild spread");
  Expect(refused(espace_cuda_map_create(table, 2, 2, 3, nullptr, 3, &map), "rows_out must equal"),
         "a map of the wrong size");
  Expect(espace_cuda_map_create(table, 2, 2, 3, spread, 3, &map) == ESPACE_OK, "a map");
  const float rows[] = {1, 2, 4}, filter[] = {1, 10};
  float out[3] = {};
  EspaceCudaCall call = {};
  call.batch = call.channels = call.filters = 1;
  call.rows = rows;
  call.filter = filter;
  Expect(refused(espace_cuda_forward(map, &call, nullptr), "out must not be null"), "no out");
  call.out = out;
  call.type = 3;
  Expect(refused(espace_cuda_forward(map, &call, nullptr), "type must be in [0, 2]"), "a type");
  call.type = 0;
  int64_t bytes = -1;
  Expect(espace_cuda_scratch(map, &call, 0, &bytes) == ESPACE_OK && bytes >= 0, "scratch");
  Expect(espace_cuda_forward(map, &call, nullptr) == ESPACE_OK, "a call");
  Expect(out[0] == 40 && out[1] == 21 && out[2] == 40, "the result of a call");
  call.grad_out = out;
  call.grad_bias = out;
  Expect(refused(espace_cuda_gradients(map, &call, nullptr), "scratch must have"), "no scratch");
  Expect(espace_cuda_map_free(map) == ESPACE_OK && espace_cuda_map_free(nullptr) == ESPACE_OK,
         "a map is freed");
}

}  // namespace

int main() {
  CheckInterface();
  std::printf("%lld checks, %lld failures\n", static_cast<long long>(cases),
              static_cast<long long>(failures));
  return failures != 0;
}
