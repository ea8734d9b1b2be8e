// SPDX-License-Identifier: Apache-2.0
// The words of real crashes.
#include "arcflow/control/crash_text.h"

#include <gtest/gtest.h>

namespace arcflow::control {
namespace {

TEST(CrashTextTest, ReadsAnUncaughtException) {
  const CrashText crash = ReadCrash({"epoch 1",
                                     "terminate called after throwing an instance of "
                                     "'std::out_of_range'",
                                     "  what():  vector::_M_range_check: 7"});
  EXPECT_EQ(crash.type, "std::out_of_range");
  EXPECT_EQ(crash.message,
            "terminate called after throwing an instance of 'std::out_of_range': "
            "vector::_M_range_check: 7");
  EXPECT_FALSE(crash.peer_loss);
  EXPECT_FALSE(crash.out_of_memory);
}

TEST(CrashTextTest, BadAllocIsMemory) {
  const CrashText crash =
      ReadCrash({"terminate called after throwing an instance of 'std::bad_alloc'",
                 "  what():  std::bad_alloc"});
  EXPECT_TRUE(crash.out_of_memory);
}

TEST(CrashTextTest, ReadsGlibcAssertAndCheck) {
  EXPECT_EQ(ReadCrash({"free(): invalid pointer"}).message, "free(): invalid pointer");
  EXPECT_EQ(ReadCrash({"double free or corruption (fasttop)"}).type, "memory corruption");
  EXPECT_EQ(ReadCrash({"*** stack smashing detected ***: terminated"}).type, "memory corruption");
  EXPECT_EQ(ReadCrash({"a.out: a.c:4: main: Assertion `x > 0' failed."}).type, "assertion");
  EXPECT_EQ(
      ReadCrash({"2026-11-28 05:44:44.123456: F tensorflow/core/framework/tensor_shape.cc:204]"
                 " Non-OK-status: InitDims(dim_sizes)"})
          .type,
      "fatal error");
  EXPECT_EQ(
      ReadCrash({"F1128 05:44:44.123456   77 tensor.cc:1] Check failed: a == b (1 vs. 2)"}).type,
      "Check failed");
  EXPECT_EQ(ReadCrash({"all was well", "Floor: F is a letter"}).message, "");
}

TEST(CrashTextTest, ReadsFaulthandler) {
  const CrashText crash =
      ReadCrash({"step 4", "Fatal Python error: Segmentation fault", "",
                 "Current thread 0x00007f (most recent call first):",
                 "  File \"/usr/lib/python3.11/ctypes/__init__.py\", line 519 in string_at",
                 "  File \"train.py\", line 7 in crash", "", "Extension modules: numpy (total: 1)",
                 "something else"});
  EXPECT_EQ(crash.message, "Fatal Python error: Segmentation fault");
  EXPECT_NE(crash.traceback.find("train.py\", line 7 in crash"), std::string::npos);
  EXPECT_EQ(crash.traceback.find("something else"), std::string::npos);
}

TEST(CrashTextTest, TheFirstWordsCountAndThePythonFramesStay) {
  const CrashText crash = ReadCrash(
      {"terminate called after throwing an instance of 'int'", "Fatal Python error: Aborted", "",
       "Current thread 0x1 (most recent call first):", "  File \"x.py\", line 1 in f"});
  EXPECT_EQ(crash.type, "int");
  EXPECT_NE(crash.traceback.find("x.py"), std::string::npos);
}

TEST(CrashTextTest, ACoordinationServiceThatLostAPeerIsAConsequence) {
  const CrashText crash = ReadCrash(
      {"2026-11-28 05:44:44.1: E external/local_xla/xla/tsl/distributed_runtime/coordination/"
       "coordination_service_agent.cc:1010] Polled an error from coordination service",
       "2026-11-28 05:44:44.1: F external/local_xla/xla/pjrt/distributed/client.h:80] Terminating "
       "process because the JAX distributed service detected fatal errors."});
  EXPECT_TRUE(crash.peer_loss);
  // Words that any program may have are no such sign.
  EXPECT_FALSE(ReadCrash({"requests: Connection refused by the database", "Killed"}).peer_loss);
}

TEST(CrashTextTest, MemoryIsToldByTypeAndWords) {
  EXPECT_TRUE(BlamesMemory("MemoryError", ""));
  EXPECT_TRUE(BlamesMemory("_ArrayMemoryError", "Unable to allocate 8.00 EiB"));
  EXPECT_TRUE(BlamesMemory("ResourceExhaustedError", "OOM when allocating tensor with shape[9]"));
  EXPECT_FALSE(BlamesMemory("ResourceExhaustedError", "received message larger than max"));
  EXPECT_FALSE(BlamesMemory("ValueError", "bad label"));
}

}  // namespace
}  // namespace arcflow::control
