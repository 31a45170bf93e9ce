# Builds and runs the test of the delegate, from kernels/core: no Python, no LiteRT. CALLS spoiled
# ones, from SEED on; the rest as in that Makefile.
include Makefile
.DEFAULT_GOAL := delegate
VPATH += ../litert ../litert/tests
CALLS ?= 4000
LITERT := $(patsubst ../litert/%.cc,$(BUILD)/%.o,$(wildcard ../litert/*.cc)) \
  $(BUILD)/delegate_test.o

delegate: $(BUILD)/delegate_test
	$(RUN) $< $(CALLS) $(or $(SEED),1)

$(BUILD)/delegate_test: $(LITERT) $(OBJECTS)
	$(CXX) $(FLAGS) $^ -o $@

$(LITERT): $(wildcard ../litert/*.h ../litert/tests/*.h)

.PHONY: delegate
