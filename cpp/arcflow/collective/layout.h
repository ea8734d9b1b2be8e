// SPDX-License-Identifier: Apache-2.0
// Layout: which ranks of a group are on which host, as one of them sees it.
#pragma once

#include <string>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::collective {

/// Hosts are numbered in the order of their lowest ranks, so rank 0 is on host 0. The first rank of
/// a host is its leader. When all hosts have equally many ranks, rank i of each host exchanges with
/// rank i of the others (`even`); otherwise the leaders exchange for all.
/// Threads: immutable.
class Layout {
 public:
  /// `hosts`: by rank, any number that is the same for ranks of one host. InvalidArgument unless
  /// there are at least two hosts and `rank` is one of them.
  static Result<Layout> Make(const std::vector<int>& hosts, int rank);

  int rank() const { return rank_; }
  int ranks() const { return static_cast<int>(host_of_.size()); }
  int hosts() const { return static_cast<int>(members_.size()); }
  int host() const { return host_of(rank_); }
  int host_of(int rank) const { return host_of_[static_cast<std::size_t>(rank)]; }
  /// Ranks of a host, rising.
  const std::vector<int>& members(int host) const {
    return members_[static_cast<std::size_t>(host)];
  }
  /// Ranks on this host, and this rank's place among them.
  int local_ranks() const { return static_cast<int>(members(host()).size()); }
  int local_rank() const { return local_rank_; }
  /// Ranks of the host that has most.
  int most() const { return most_; }
  bool even() const { return even_; }
  bool leads() const { return local_rank_ == 0; }
  /// Whether this rank exchanges with other hosts at all.
  bool exchanges() const { return even_ || leads(); }
  /// With whom of `host` this rank exchanges; requires `exchanges()`.
  int partner(int host) const {
    return members(host)[even_ ? static_cast<std::size_t>(local_rank_) : 0];
  }
  /// Whether two ranks have a connection: those that exchange, and each with rank 0.
  bool connected(int a, int b) const;

 private:
  int PlaceOf(int rank) const;

  int rank_ = 0;
  int local_rank_ = 0;
  int most_ = 0;
  bool even_ = false;
  std::vector<int> host_of_;
  std::vector<std::vector<int>> members_;
};

}  // namespace arcflow::collective
