// SPDX-License-Identifier: Apache-2.0
// Mapping and memfds: sizes that lie are refused, seals hold, nothing is left open.
#include "arcflow/base/mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>

namespace arcflow {
namespace {

constexpr std::size_t kPage = 4096;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

Fd Memfd(std::size_t size) {
  auto fd = CreateMemfd("mapping-test", size);
  EXPECT_TRUE(fd.ok()) << fd.status().ToString();
  return std::move(*fd);
}

TEST(MappingTest, TwoMappingsShareTheirBytes) {
  const Fd fd = Memfd(kPage);
  auto writer = Mapping::Map(fd, kPage, true, false);
  auto reader = Mapping::Map(fd, kPage, false, true);
  ASSERT_TRUE(writer.ok() && reader.ok());
  std::memcpy(writer->data(), "hello", 5);
  EXPECT_EQ(std::memcmp(reader->data(), "hello", 5), 0);
  EXPECT_EQ(reader->size_bytes(), kPage);
}

TEST(MappingTest, SizeThatLiesIsRefused) {
  const Fd fd = Memfd(kPage);
  EXPECT_EQ(Mapping::Map(fd, kPage + 1, false, false).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Mapping::Map(fd, std::size_t{1} << 62, false, false).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(Mapping::Map(fd, 0, false, false).status().code(), Code::kInvalidArgument);
}

TEST(MappingTest, PartOfAFileMayBeMapped) {
  const Fd fd = Memfd(3 * kPage);
  EXPECT_TRUE(Mapping::Map(fd, 100, false, false).ok());
}

TEST(MappingTest, ThingsThatAreNoFileAreRefused) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd read(ends[0]);
  const Fd write(ends[1]);
  EXPECT_EQ(Mapping::Map(read, kPage, false, false).status().code(), Code::kInvalidArgument);
  const Fd folder(::open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_FALSE(Mapping::Map(folder, kPage, false, false).ok());
  EXPECT_FALSE(Mapping::Map(Fd(), kPage, false, false).ok());
}

TEST(MappingTest, MoveLeavesNothingBehind) {
  const Fd fd = Memfd(kPage);
  auto made = Mapping::Map(fd, kPage, true, false);
  ASSERT_TRUE(made.ok());
  std::byte* data = made->data();
  Mapping moved = std::move(*made);
  EXPECT_FALSE(made->valid());
  EXPECT_EQ(moved.data(), data);
  Mapping assigned;
  assigned = std::move(moved);
  EXPECT_EQ(assigned.data(), data);
  EXPECT_EQ(assigned.size_bytes(), kPage);
}

TEST(MappingTest, ReadOnlyMappingFaultsOnAWrite) {
  const Fd fd = Memfd(kPage);
  auto reader = Mapping::Map(fd, kPage, false, false);
  ASSERT_TRUE(reader.ok());
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);  // no sanitizer report: the fault is the point
    *reinterpret_cast<volatile char*>(reader->data()) = 1;
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

TEST(MemfdTest, HasItsSizeIsZeroAndCloseOnExec) {
  const Fd fd = Memfd(12345);
  struct stat st {};
  ASSERT_EQ(::fstat(fd.get(), &st), 0);
  EXPECT_EQ(st.st_size, 12345);
  EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
  EXPECT_EQ(*ReadAllBytes(fd, 20000), std::string(12345, '\0'));
}

TEST(MemfdTest, CannotShrinkOrGrow) {
  const Fd fd = Memfd(kPage);
  EXPECT_NE(::ftruncate(fd.get(), 0), 0);
  EXPECT_NE(::ftruncate(fd.get(), 2 * kPage), 0);
}

TEST(MemfdTest, LongNamesAreCut) { EXPECT_TRUE(CreateMemfd(std::string(1000, 'n'), kPage).ok()); }

TEST(MemfdTest, SizesOutOfRangeAreRefused) { EXPECT_FALSE(CreateMemfd("x", ~std::size_t{0}).ok()); }

TEST(MemfdTest, AfterSealingOnlyTheFirstWriterWrites) {
  const Fd fd = Memfd(kPage);
  auto writer = Mapping::Map(fd, kPage, true, false);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(SealForReaders(fd).ok());
  // No new way to write: not by mapping, not by write, not by making a read-only mapping writable.
  EXPECT_FALSE(Mapping::Map(fd, kPage, true, false).ok());
  EXPECT_LT(::pwrite(fd.get(), "x", 1, 0), 0);
  auto reader = Mapping::Map(fd, kPage, false, false);
  ASSERT_TRUE(reader.ok());
  EXPECT_NE(::mprotect(reader->data(), kPage, PROT_READ | PROT_WRITE), 0);
  // The one that exists goes on, and readers see it.
  std::memcpy(writer->data(), "later", 5);
  EXPECT_EQ(std::memcmp(reader->data(), "later", 5), 0);
}

TEST(MemfdTest, SealedForReadersIsSealedAgainstSealsAndSizes) {
  const Fd fd = Memfd(kPage);
  ASSERT_TRUE(SealForReaders(fd).ok());
  EXPECT_NE(::ftruncate(fd.get(), 0), 0);
  EXPECT_FALSE(SealForReaders(fd).ok());
}

TEST(MemfdTest, PlainFileCannotBeSealed) {
  const auto folder = std::filesystem::temp_directory_path().string();
  const Fd file(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file.valid()) GTEST_SKIP() << "no O_TMPFILE in " << folder;
  EXPECT_FALSE(SealForReaders(file).ok());
}

TEST(MemfdTest, BytesComeBackWhole) {
  std::string text(1'000'000, 'x');
  text[999'999] = '\0';
  auto fd = MemfdFromBytes("blob", Bytes(text));
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(*ReadAllBytes(*fd, text.size()), text);
  EXPECT_EQ(*ReadAllBytes(*fd, text.size()), text);  // the position is nobody's
  EXPECT_EQ(ReadAllBytes(*fd, text.size() - 1).status().code(), Code::kInvalidArgument);
}

TEST(MemfdTest, BlobCannotBeChangedByWhoReceivesIt) {
  auto fd = MemfdFromBytes("blob", Bytes("payload"));
  ASSERT_TRUE(fd.ok());
  EXPECT_LT(::pwrite(fd->get(), "x", 1, 0), 0);
  EXPECT_FALSE(Mapping::Map(*fd, 7, true, false).ok());
  EXPECT_NE(::ftruncate(fd->get(), 0), 0);
}

TEST(MemfdTest, EmptyBlobIsEmpty) {
  auto fd = MemfdFromBytes("blob", {});
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(*ReadAllBytes(*fd, 0), "");
}

TEST(MemfdTest, ReadingWhatIsNoFileIsRefused) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd read(ends[0]);
  const Fd write(ends[1]);
  EXPECT_EQ(ReadAllBytes(read, 10).status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace arcflow
