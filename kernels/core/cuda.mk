# The GPU kernels, which are experimental: their tests on the CPU, and the library. Called by the
# Makefile at the top.
# ARCHITECTURES: compute capabilities to compile for; later ones compile the last one's PTX.
BUILD ?= ../../build/cuda
NVCC ?= nvcc
ARCHITECTURES ?= 80 90
VPATH := cuda tests
KERNELS := run_float32 run_float16 run_bfloat16 masked_conv2d c_api
HEADERS := $(wildcard *.h cuda/*.h)
CXX_FLAGS := -std=c++17 -I.. -Wall -Wextra -Wno-unknown-pragmas $(or $(EXTRA),-O2)
NVCC_FLAGS := -x cu -std=c++17 -O3 -I.. -Xcompiler -fPIC \
  $(foreach arch,$(ARCHITECTURES),-gencode=arch=compute_$(arch),code=sm_$(arch)) \
  $(foreach arch,$(lastword $(ARCHITECTURES)),-gencode=arch=compute_$(arch),code=compute_$(arch))
EMULATED := $(KERNELS:%=$(BUILD)/%.emulated.o) \
  $(patsubst %,$(BUILD)/%.o,emulation emulation_numbers reference)

test: $(patsubst %,$(BUILD)/cuda_%_test,index api kernel)
	$(BUILD)/cuda_index_test
	$(BUILD)/cuda_api_test
	$(BUILD)/cuda_kernel_test $(ARGUMENTS)

library: $(BUILD)/libespace_cuda.so

# The runtime is linked statically: the library loads without one, and beside any other.
$(BUILD)/libespace_cuda.so: $(KERNELS:%=$(BUILD)/%.cuda.o)
	$(NVCC) -shared -cudart static $^ -o $@

$(BUILD)/%_test: $(BUILD)/%_test.o $(EMULATED)
	$(CXX) $(CXX_FLAGS) $^ -o $@

$(BUILD)/%.cuda.o: %.cu.cc $(HEADERS) | $(BUILD)
	$(NVCC) $(NVCC_FLAGS) -c $< -o $@

$(BUILD)/%.emulated.o: %.cu.cc $(HEADERS) | $(BUILD)
	$(CXX) $(CXX_FLAGS) -c $< -o $@

# The emulation tells the sanitizer what its fibers do, and is not watched itself.
$(BUILD)/emulation.o: emulation.cc cuda/emulation.h | $(BUILD)
	$(CXX) $(filter-out -fsanitize=thread,$(CXX_FLAGS)) \
	  $(if $(findstring -fsanitize=thread,$(EXTRA)),-DESPACE_FIND_RACES) -c $< -o $@

$(BUILD)/%.o: %.cc $(HEADERS) | $(BUILD)
	$(CXX) $(CXX_FLAGS) -c $< -o $@

$(BUILD):
	mkdir -p $@

.PHONY: test library
