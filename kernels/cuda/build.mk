# build.mk: $O/libma-cuda.so from kernels/cuda/*.cu, where nvcc and cuDNN 9 are found; included by the Makefile.
# Variables: CUDA_ARCH: architectures to build for, as in CUDA_ARCH="80 90" (default: every generation that nvcc knows from
# 80 on; code for 80 runs on 86 and 89 as well; for the last one also as PTX, for cards to come) · CUDNN: folder with include/ and lib/ where cuDNN is not with the
# toolkit · CUDA_LIBRARY (made here): the library, or empty.
# Not with SAN=1: ASan and the driver claim the same addresses.

CUDA_LIBRARY :=
ifneq ($(and $(NVCC),$(if $(SAN),,yes)),)
CUDA_HOME  := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIBS  := $(wildcard $(CUDNN:%=%/lib) $(CUDA_HOME)/lib64 $(CUDA_HOME)/targets/$(shell uname -m)-linux/lib)
CUDNN_H    := $(firstword $(wildcard $(addsuffix /cudnn_graph.h,$(CUDNN:%=%/include) $(CUDA_HOME)/include /usr/include \
              /usr/include/$(shell uname -m)-linux-gnu)))
ifeq ($(CUDNN_H),)
$(info ma-tools: cuDNN 9 not found (cudnn_graph.h; CUDNN=DIR says where): libma-cuda.so is not built)
else
CUDA_LIBRARY := $O/libma-cuda.so
CUDA_ARCHS := $(if $(CUDA_ARCH),$(CUDA_ARCH),$(shell $(NVCC) --list-gpu-code | sed -n 's/^sm_//p' | sort -n | awk '$$1 >= 80 && $$1 % 10 == 0'))
CUDA_FLAGS := -O3 -std=c++17 --threads 2 -Xcompiler -fPIC,-fvisibility=hidden,-Wall $(if $(WERROR),-Werror all-warnings) \
              -I$(dir $(CUDNN_H))
CUDA_CODE  := $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
              -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))
CUDA_LINK  := $(foreach d,$(CUDA_LIBS),-L$d -Xlinker -rpath=$d) -Xlinker --enable-new-dtags -Xlinker -z -Xlinker defs \
              -Xlinker --exclude-libs=ALL -lcudnn -lcublasLt
CUDA_OBJ   := $(patsubst %.cu,$O/obj/%.o,$(wildcard kernels/cuda/*.cu))
# What the kernels use of common/ (errors, names, sizes): a copy of their own, hidden as all else, on one thread.
CUDA_BASE  := $(patsubst %,$O/obj/cuda/common/%.o,base array tensor)

# For the instructions that only 9.0 has, and no PTX carries on; without MA_SM90A these files are empty.
ifneq ($(filter 90,$(CUDA_ARCHS)),)
$O/obj/kernels/cuda/attention_sm90_%.o: CUDA_CODE := -DMA_SM90A -gencode arch=compute_90a,code=sm_90a
endif

$O/obj/kernels/cuda/%.o: kernels/cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) $(CUDA_CODE) -MMD -MP -c $< -o $@

$O/obj/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(filter-out -fopenmp,$(ALL_CFLAGS)) -Wno-unknown-pragmas -fPIC -fvisibility=hidden -MMD -MP -c $< -o $@

$(CUDA_LIBRARY): $(CUDA_OBJ) $(CUDA_BASE)
	$(NVCC) -shared $^ -o $@ $(CUDA_LINK)

all: $(CUDA_LIBRARY)
endif
endif
