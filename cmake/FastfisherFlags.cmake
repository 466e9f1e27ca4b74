# SPDX-License-Identifier: Apache-2.0
# Compile options of the project's own targets, as an interface target that is never installed.
add_library(fastfisher_flags INTERFACE)
target_compile_options(
  fastfisher_flags
  INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall>
    $<$<COMPILE_LANGUAGE:CXX>:-Wextra>
    $<$<COMPILE_LANGUAGE:CXX>:-Wshadow>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${FASTFISHER_WERROR}>>:-Werror>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${FASTFISHER_NATIVE_ARCH}>>:-march=native>
)
if(FASTFISHER_SANITIZE)
  target_compile_options(
    fastfisher_flags
    INTERFACE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${FASTFISHER_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>
  )
  target_link_options(fastfisher_flags INTERFACE -fsanitize=${FASTFISHER_SANITIZE})
endif()
