// SPDX-License-Identifier: Apache-2.0
// Packets: descriptors pass, bounds hold, nothing leaks, and the death of a peer is seen at once.
#include "arcflow/net/packet.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "arcflow/base/mapping.h"

namespace arcflow::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline Soon() { return Deadline::After(seconds(20)); }

std::size_t OpenDescriptors() {
  const auto entries = std::filesystem::directory_iterator("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

struct Pair {
  Pair() {
    auto pair = PacketPair();
    EXPECT_TRUE(pair.ok());
    a = std::move(pair->first);
    b = std::move(pair->second);
  }
  Fd a, b;
};

Fd Memfd(std::string_view text) {
  return std::move(*MemfdFromBytes("test", std::as_bytes(std::span(text.data(), text.size()))));
}

TEST(PacketTest, MessageArrivesWholeAndInOrder) {
  Pair sut;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "n"}, {"i", i}}, {}, Soon()).ok());
  }
  for (int i = 0; i < 10; ++i) {
    auto message = ReceiveMessage(sut.b.get(), -1, Soon());
    ASSERT_TRUE(message.ok() && message->has_value());
    EXPECT_EQ((*message)->op, "n");
    EXPECT_EQ((*(*message)->body)["i"], i);
  }
}

TEST(PacketTest, LargestPacketPasses) {
  Pair sut;
  const std::string text(kMaxPacketBytes - 20, 'x');
  ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "n"}, {"t", text}}, {}, Soon()).ok());
  auto message = ReceiveMessage(sut.b.get(), -1, Soon());
  ASSERT_TRUE(message.ok() && message->has_value());
  EXPECT_EQ((*(*message)->body)["t"], text);
}

TEST(PacketTest, DescriptorsPassAndAreCloseOnExec) {
  Pair sut;
  const Fd one = Memfd("one");
  const Fd two = Memfd("two");
  ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "fds"}}, {one.get(), two.get()}, Soon()).ok());
  auto packet = ReceivePacket(sut.b.get(), -1, Soon());
  ASSERT_TRUE(packet.ok() && packet->has_value());
  ASSERT_EQ((*packet)->fds.size(), 2u);
  EXPECT_EQ(*ReadAllBytes((*packet)->fds[0], 10), "one");
  EXPECT_EQ(*ReadAllBytes((*packet)->fds[1], 10), "two");
  for (const Fd& fd : (*packet)->fds) EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(PacketTest, BothEndsAreCloseOnExec) {
  Pair sut;
  EXPECT_TRUE(::fcntl(sut.a.get(), F_GETFD) & FD_CLOEXEC);
  EXPECT_TRUE(::fcntl(sut.b.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(PacketTest, PacketOverTheBoundsIsNotSent) {
  Pair sut;
  EXPECT_EQ(SendPacket(sut.a.get(), {{"t", std::string(kMaxPacketBytes, 'x')}}, {}, Soon()).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(SendPacket(sut.a.get(), {{"op", "x"}}, {0, 0, 0, 0, 0}, Soon()).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(ReceivePacket(sut.b.get(), -1, Deadline::After(milliseconds(0))).status().code(),
            Code::kDeadlineExceeded);
}

TEST(PacketTest, TruncatedPacketIsAnError) {
  Pair sut;
  const std::string big(kMaxPacketBytes + 1, 'x');
  ASSERT_EQ(::send(sut.a.get(), big.data(), big.size(), 0), static_cast<ssize_t>(big.size()));
  EXPECT_EQ(ReceivePacket(sut.b.get(), -1, Soon()).status().code(), Code::kInvalidArgument);
}

TEST(PacketTest, TooManyDescriptorsAreAnErrorAndNoneLeaks) {
  Pair sut;
  const std::size_t before = OpenDescriptors();
  char byte = '{';
  iovec iov{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(8 * sizeof(int));
  for (int i = 0; i < 8; ++i) reinterpret_cast<int*>(CMSG_DATA(c))[i] = sut.a.get();
  ASSERT_EQ(::sendmsg(sut.a.get(), &header, 0), 1);
  EXPECT_EQ(ReceivePacket(sut.b.get(), -1, Soon()).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(PacketTest, DescriptorsOfAMessageThatDoesNotParseDoNotLeak) {
  Pair sut;
  const std::size_t before = OpenDescriptors();
  ASSERT_TRUE(SendPacket(sut.a.get(), nlohmann::json::array(), {sut.a.get()}, Soon()).ok());
  EXPECT_EQ(ReceiveMessage(sut.b.get(), -1, Soon()).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(PacketTest, OnlyObjectsWithAStringOpAreMessages) {
  for (const char* bad : {"[]", "{}", "{\"op\":1}", "{\"op\":", "\xff"}) {
    Pair sut;
    ASSERT_GT(::send(sut.a.get(), bad, std::strlen(bad), 0), 0);
    EXPECT_EQ(ReceiveMessage(sut.b.get(), -1, Soon()).status().code(), Code::kInvalidArgument);
  }
}

TEST(PacketTest, ClosedPeerIsTheEndAfterWhatItSent) {
  Pair sut;
  ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "last"}}, {}, Soon()).ok());
  sut.a.reset();
  auto message = ReceiveMessage(sut.b.get(), -1, Soon());
  ASSERT_TRUE(message.ok());
  EXPECT_TRUE(message->has_value());
  auto end = ReceiveMessage(sut.b.get(), -1, Soon());
  ASSERT_TRUE(end.ok());
  EXPECT_FALSE(end->has_value());
}

// The kernel reports a reset before what the peer sent last; its last words must not be lost.
TEST(PacketTest, PeerThatClosedWithUnreadPacketsIsStillHeard) {
  Pair sut;
  ASSERT_TRUE(SendPacket(sut.b.get(), {{"op", "unread"}}, {}, Soon()).ok());
  ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "last"}}, {}, Soon()).ok());
  ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "words"}}, {}, Soon()).ok());
  sut.a.reset();
  for (const char* op : {"last", "words"}) {
    auto message = ReceiveMessage(sut.b.get(), -1, Soon());
    ASSERT_TRUE(message.ok() && message->has_value());
    EXPECT_EQ((*message)->op, op);
  }
  auto end = ReceiveMessage(sut.b.get(), -1, Soon());
  ASSERT_TRUE(end.ok());
  EXPECT_FALSE(end->has_value());
}

TEST(PacketTest, SendingToAClosedPeerIsUnavailableAndNoSignal) {
  Pair sut;
  sut.b.reset();
  EXPECT_EQ(SendPacket(sut.a.get(), {{"op", "x"}}, {}, Soon()).code(), Code::kUnavailable);
}

TEST(PacketTest, FullQueueBlocksUntilTheDeadline) {
  Pair sut;
  const nlohmann::json big = {{"op", "x"}, {"t", std::string(60'000, 'x')}};
  Status last;
  for (int i = 0; i < 1000 && last.ok(); ++i) {
    last = SendPacket(sut.a.get(), big, {}, Deadline::After(milliseconds(20)));
  }
  EXPECT_EQ(last.code(), Code::kDeadlineExceeded);
}

TEST(PacketTest, FullQueueGoesOnWhenThePeerReads) {
  Pair sut;
  constexpr int kCount = 60;  // far more than a socket holds
  std::thread reader([&] {
    for (int i = 0; i < kCount; ++i) {
      auto message = ReceiveMessage(sut.b.get(), -1, Soon());
      ASSERT_TRUE(message.ok() && message->has_value());
      EXPECT_EQ((*(*message)->body)["i"], i);
    }
  });
  for (int i = 0; i < kCount; ++i) {
    ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "x"}, {"i", i}, {"t", std::string(50'000, 'x')}},
                           {}, Soon())
                    .ok());
  }
  reader.join();
}

TEST(PacketTest, ExpiredDeadlineStillTakesWhatIsThere) {
  Pair sut;
  EXPECT_EQ(ReceivePacket(sut.b.get(), -1, Deadline::After(seconds(-1))).status().code(),
            Code::kDeadlineExceeded);
  ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "x"}}, {}, Soon()).ok());
  EXPECT_TRUE(ReceivePacket(sut.b.get(), -1, Deadline::After(seconds(-1))).ok());
}

TEST(PacketTest, CancelDescriptorEndsTheWait) {
  Pair sut;
  const Fd cancel(::eventfd(0, EFD_CLOEXEC));
  std::thread other([&] {
    std::this_thread::sleep_for(milliseconds(50));
    const std::uint64_t one = 1;
    ASSERT_EQ(::write(cancel.get(), &one, sizeof(one)), 8);
  });
  EXPECT_EQ(ReceivePacket(sut.b.get(), cancel.get(), Deadline::Infinite()).status().code(),
            Code::kCancelled);
  other.join();
}

void OnSignal(int) {}

TEST(PacketTest, SignalsDoNotEndTheWait) {
  struct sigaction action {};
  action.sa_handler = OnSignal;  // without SA_RESTART
  struct sigaction before {};
  ::sigaction(SIGUSR1, &action, &before);
  Pair sut;
  const pthread_t self = ::pthread_self();
  std::thread other([&] {
    for (int i = 0; i < 5; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
      ::pthread_kill(self, SIGUSR1);
    }
    ASSERT_TRUE(SendPacket(sut.a.get(), {{"op", "x"}}, {}, Soon()).ok());
  });
  auto message = ReceiveMessage(sut.b.get(), -1, Soon());
  other.join();
  ::sigaction(SIGUSR1, &before, nullptr);
  ASSERT_TRUE(message.ok());
  EXPECT_TRUE(message->has_value());
}

TEST(PacketTest, NotADescriptorIsAnErrorAndNoHang) {
  EXPECT_FALSE(ReceivePacket(1'000'000, -1, Soon()).ok());
  EXPECT_FALSE(SendPacket(1'000'000, {{"op", "x"}}, {}, Soon()).ok());
}

/// Runs `body` in a child process on one end of a pair; the other end stays here.
template <typename Body>
pid_t ForkPeer(Pair* pair, Body body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(60);  // ends it also when the test gives up before it kills it
    pair->b.reset();
    ::_exit(body(pair->a.get()));
  }
  pair->a.reset();
  return pid;
}

TEST(PacketProcessTest, MemoryOfAChildIsReadHereAfterItHasGone) {
  Pair sut;
  const pid_t child = ForkPeer(&sut, [](int socket) {
    const Fd memory = Memfd("from the child");
    return SendPacket(socket, {{"op", "here"}}, {memory.get()}, Soon()).ok() ? 0 : 1;
  });
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  auto message = ReceiveMessage(sut.b.get(), -1, Soon());
  ASSERT_TRUE(message.ok() && message->has_value());
  ASSERT_EQ((*message)->fds.size(), 1u);
  EXPECT_EQ(*ReadAllBytes((*message)->fds[0], 100), "from the child");
}

TEST(PacketProcessTest, KilledPeerEndsABlockedReceive) {
  Pair sut;
  const pid_t child = ForkPeer(&sut, [](int) {
    ::pause();
    return 0;
  });
  std::thread killer([child] {
    std::this_thread::sleep_for(milliseconds(50));
    ::kill(child, SIGKILL);
  });
  auto end = ReceivePacket(sut.b.get(), -1, Soon());
  killer.join();
  ::waitpid(child, nullptr, 0);
  ASSERT_TRUE(end.ok());
  EXPECT_FALSE(end->has_value());
}

TEST(PacketProcessTest, KilledPeerEndsABlockedSend) {
  Pair sut;
  const pid_t child = ForkPeer(&sut, [](int) {
    ::pause();
    return 0;
  });
  std::thread killer([child] {
    std::this_thread::sleep_for(milliseconds(50));
    ::kill(child, SIGKILL);
  });
  const nlohmann::json big = {{"op", "x"}, {"t", std::string(60'000, 'x')}};
  Status last;
  while (last.ok()) last = SendPacket(sut.b.get(), big, {}, Soon());
  killer.join();
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(last.code(), Code::kUnavailable);
}

}  // namespace
}  // namespace arcflow::net
