# SPDX-License-Identifier: Apache-2.0
# arc_module(): one function makes a layer's library, alias, warnings, tests, benches, fuzz targets and install rules.
include(GNUInstallDirs)

# arc_target_defaults(<target> [TEST]): flags that every target of ours shares, by target and never through CMAKE_CXX_FLAGS.
# TEST: what only tests; its own code is built without optimization, and without UBSan's checks, which would take more than
# half of the time of all builds. The code under test has both.
function(arc_target_defaults target)
  cmake_parse_arguments(ARG "TEST" "" "" ${ARGN})
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wno-missing-field-initializers
    $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety> $<$<BOOL:${ARC_WERROR}>:-Werror>
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)  # wrong about std::string operator+ (GCC bug 105651)
  if(ARC_SANITIZE)
    # Sanitizers' instrumentation makes GCC see uninitialised reads that are none (its manual says so). ThreadSanitizer
    # does not follow fences; ours order the memory of other processes, which it does not watch.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-tsan>)
    set(checks ${ARC_SANITIZE})
    if(ARG_TEST)
      string(REPLACE ",undefined" "" checks ${ARC_SANITIZE})
    endif()
    target_compile_options(${target} PRIVATE -fsanitize=${checks} -fno-omit-frame-pointer -fno-sanitize-recover=all
      -O1 -g1)  # enough for a readable report, and half the time to build
    target_link_options(${target} PUBLIC -fsanitize=${ARC_SANITIZE})
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "EXECUTABLE" AND ARC_SANITIZE MATCHES "address")
      # Each test is a process, and some are several: hundreds of thousands of relocations (types and globals of the
      # sanitizers) took more than many a test. So the linker does them.
      target_link_options(${target} PRIVATE -no-pie)
    endif()
  endif()
  if(ARG_TEST)
    target_compile_options(${target} PRIVATE -O0)
  endif()
  if(ARC_FUZZ)  # the fuzzer steers by coverage of the code under test, not only of the target's main file
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# arc_target_unity(<target>): under sanitizers, sources are compiled eight at a time, which takes a third of the time. Plain
# builds compile each alone, and so find a file that leans on the includes or the names of another.
function(arc_target_unity target)
  if(ARC_SANITIZE AND NOT ARC_FUZZ)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # A source that is included is no header, and its unnamed namespace no trap.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  endif()
endfunction()

# arc_module(<name> [SINGLE_THREADED] [DEPS <target>...] [BACKENDS <folder>...] [APART <source>...])
# The folder is the list: *.h are the public headers, *.cc the sources, *_test.cc, *_bench.cc and *_fuzz.cc what they say,
# so no file can be forgotten. Test-only headers are named *_testing.h. Folders of BACKENDS add theirs to the same library and test.
# Sources of APART use names that others of the module use too: they are compiled alone (arc_target_unity).
# SINGLE_THREADED: neither the module nor its tests have threads or shared state, so ThreadSanitizer need not run its tests.
function(arc_module name)
  cmake_parse_arguments(ARG "SINGLE_THREADED" "" "DEPS;BACKENDS;APART" ${ARGN})
  set(target arcflow_${name})
  set_source_files_properties(${ARG_APART} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  list(TRANSFORM ARG_BACKENDS APPEND "/*.h" OUTPUT_VARIABLE backend_headers)
  list(TRANSFORM ARG_BACKENDS APPEND "/*.cc" OUTPUT_VARIABLE backend_sources)
  list(TRANSFORM ARG_BACKENDS APPEND "/*_test.cc" OUTPUT_VARIABLE backend_tests)
  file(GLOB headers CONFIGURE_DEPENDS *.h ${backend_headers})
  file(GLOB sources CONFIGURE_DEPENDS *.cc ${backend_sources})
  list(FILTER headers EXCLUDE REGEX "_testing\\.h$")
  list(FILTER sources EXCLUDE REGEX "_(test|bench|fuzz)\\.cc$")
  add_library(${target} STATIC ${sources})
  add_library(arcflow::${name} ALIAS ${target})
  arc_target_defaults(${target})
  arc_target_unity(${target})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR}/cpp FILES ${headers})
  target_link_libraries(${target} PUBLIC ${ARG_DEPS})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ON)
  if(NOT SKBUILD)
    install(TARGETS ${target} EXPORT arcflowTargets COMPONENT devel FILE_SET HEADERS COMPONENT devel)
  endif()
  if(NOT ARC_DEVELOPER)
    return()
  endif()

  file(GLOB tests CONFIGURE_DEPENDS *_test.cc ${backend_tests})
  if(tests AND NOT (ARG_SINGLE_THREADED AND ARC_SANITIZE STREQUAL "thread"))
    add_executable(${name}_test ${tests})
    arc_target_defaults(${name}_test TEST)
    arc_target_unity(${name}_test)
    target_link_libraries(${name}_test PRIVATE ${target} GTest::gtest_main GTest::gmock)
    include(GoogleTest)
    gtest_discover_tests(${name}_test TEST_PREFIX ${name}. PROPERTIES TIMEOUT 120 DISCOVERY_TIMEOUT 60)
  endif()

  file(GLOB benches CONFIGURE_DEPENDS *_bench.cc)
  if(benches AND benchmark_FOUND)
    add_executable(${name}_bench ${benches})
    arc_target_defaults(${name}_bench)
    target_link_libraries(${name}_bench PRIVATE ${target} benchmark::benchmark_main)
  endif()

  file(GLOB fuzzers CONFIGURE_DEPENDS *_fuzz.cc)
  foreach(source ${fuzzers})
    get_filename_component(fuzz ${source} NAME_WE)
    add_executable(${fuzz} ${source})
    arc_target_defaults(${fuzz})
    target_link_libraries(${fuzz} PRIVATE ${target})
    if(ARC_FUZZ)
      target_compile_options(${fuzz} PRIVATE -fsanitize=fuzzer)
      target_link_options(${fuzz} PRIVATE -fsanitize=fuzzer)
    else()  # a plain main replays the corpus in ctest
      target_sources(${fuzz} PRIVATE ${PROJECT_SOURCE_DIR}/cmake/fuzz_replay_main.cc)
    endif()
    add_test(NAME ${name}.${fuzz} COMMAND ${fuzz} ${CMAKE_CURRENT_SOURCE_DIR}/testdata/${fuzz})
    set_tests_properties(${name}.${fuzz} PROPERTIES TIMEOUT 120)
  endforeach()
endfunction()
