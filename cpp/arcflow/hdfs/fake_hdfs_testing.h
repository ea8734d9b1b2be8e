// SPDX-License-Identifier: Apache-2.0
// FakeHdfs: NameNodes and DataNodes that speak WebHDFS over a tree in memory, with a hook for
// faults.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "arcflow/hdfs/file_system.h"
#include "arcflow/hdfs/http_server_testing.h"
#include "arcflow/hdfs/transfer_server_testing.h"

namespace arcflow::hdfs::testing {

inline Reply Json(const nlohmann::json& body, int status = 200) {
  return {status, body.dump(), {{"Content-Type", "application/json"}}, {}, {}, {}, false};
}
inline Reply Exception(int status, const std::string& exception, const std::string& message) {
  return Json({{"RemoteException", {{"exception", exception}, {"message", message}}}}, status);
}

/// The same at each call.
inline std::string SomeBytes(std::size_t n) {
  std::mt19937 random(7);
  std::string out(n, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

/// Behaves as the parts of Hadoop that the client uses; not more.
class FakeHdfs {
 public:
  /// Looked at before the request is answered: what it returns is the answer. `server` is "nn0",
  /// "dn1", …
  using Fault = std::function<std::optional<Reply>(const std::string& server, const Request&)>;

  /// `direct`: DataNodes also take requests for blocks, and NameNodes tell where these are.
  explicit FakeHdfs(int name_nodes = 1, int data_nodes = 2, bool direct = false) {
    for (int i = 0; direct && i < data_nodes; ++i) {
      transfer.push_back(
          std::make_unique<TransferServer>([this](std::uint64_t id) { return Block(id); }));
    }
    for (int i = 0; i < name_nodes; ++i) {
      const std::string name = "nn" + std::to_string(i);
      nn.push_back(std::make_unique<HttpServer>(
          [this, name](const Request& r) { return OnNameNode(name, r); }));
    }
    for (int i = 0; i < data_nodes; ++i) {
      const std::string name = "dn" + std::to_string(i);
      dn.push_back(std::make_unique<HttpServer>(
          [this, name](const Request& r) { return OnDataNode(name, r); }));
    }
  }
  ~FakeHdfs() {  // the servers first: their threads use the rest
    for (const auto& one : nn) one->Stop();
    for (const auto& one : dn) one->Stop();
    for (const auto& one : transfer) one->Stop();
  }

  void SetFault(Fault fault) {
    const std::lock_guard lock(mutex_);
    fault_ = std::move(fault);
  }
  void Put(const std::string& path, std::string bytes) {
    const std::lock_guard lock(mutex_);
    Store(path, std::move(bytes));
  }
  void Remove(const std::string& path) {
    const std::lock_guard lock(mutex_);
    files_.erase(path);
  }
  std::optional<std::string> Content(const std::string& path) {
    const std::lock_guard lock(mutex_);
    const auto it = files_.find(path);
    if (it == files_.end() || it->second.folder) return std::nullopt;
    return it->second.bytes;
  }
  std::vector<std::string> Names() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> out;
    for (const auto& [path, node] : files_) out.push_back(path);
    return out;
  }
  /// "nn0 GET OPEN /a?…" of every request, in order.
  std::vector<std::string> Log() {
    const std::lock_guard lock(mutex_);
    return log_;
  }
  int Count(const std::string& part) {
    int n = 0;
    for (const std::string& line : Log()) n += line.find(part) != std::string::npos ? 1 : 0;
    return n;
  }

  /// hdfs-site.xml for an HA service "ns" over all NameNodes.
  ClusterConfig HaConfig() const {
    Properties p;
    p.Set("fs.defaultFS", "hdfs://ns");
    p.Set("dfs.nameservices", "ns");
    std::string list;
    for (std::size_t i = 0; i < nn.size(); ++i) {
      const std::string id = "nn" + std::to_string(i);
      list += (i == 0 ? "" : ",") + id;
      p.Set("dfs.namenode.http-address.ns." + id, nn[i]->authority());
    }
    p.Set("dfs.ha.namenodes.ns", list);
    return ClusterConfig(std::move(p));
  }
  std::string Uri(const std::string& path) const {
    return "webhdfs://" + nn[0]->authority() + path;
  }

  /// Options with short pauses.
  static Options Quick() {
    Options o;
    o.user = "tester";
    o.first_pause = std::chrono::milliseconds(2);
    o.longest_pause = std::chrono::milliseconds(20);
    o.connect_timeout = std::chrono::seconds(5);
    return o;
  }
  static std::unique_ptr<FileSystem> Client(ClusterConfig config = {}, Options options = Quick()) {
    return std::move(FileSystem::Make(std::move(config), std::move(options))).value();
  }

  std::vector<std::unique_ptr<HttpServer>> nn;
  std::vector<std::unique_ptr<HttpServer>> dn;
  std::vector<std::unique_ptr<TransferServer>> transfer;
  nlohmann::json more_status = nlohmann::json::object();  // added to each FileStatus
  bool under_construction = false;                        // so are all files
  /// URL form of a token with this identifier is what a block comes with.
  std::string block_token = "secret of the block";
  std::uint64_t block_bytes = std::uint64_t{1} << 20;

 private:
  struct Node {
    bool folder = false;
    std::string bytes;
  };

  void Store(const std::string& path, std::string bytes) {
    MakeFolders(ParentPath(path));
    files_[path] = {false, std::move(bytes)};
  }
  void MakeFolders(const std::string& path) {
    for (std::string at = path; at != "/"; at = ParentPath(at)) files_[at].folder = true;
  }
  std::optional<Reply> Faulty(const std::string& server, const Request& r) {
    Fault fault;
    {
      const std::lock_guard lock(mutex_);
      log_.push_back(server + " " + r.method + " " + r.Get("op") + " " + r.path + "?" + r.query);
      fault = fault_;
    }
    return fault ? fault(server, r) : std::nullopt;
  }
  static std::string PathOf(const Request& r) { return CleanPath(r.path.substr(11)); }

  nlohmann::json StatusOf(const std::string& name, const Node& node) const {
    nlohmann::json status = {{"pathSuffix", name},
                             {"type", node.folder ? "DIRECTORY" : "FILE"},
                             {"length", node.bytes.size()},
                             {"blockSize", node.folder ? 0 : block_bytes},
                             {"modificationTime", 1700000000123},
                             {"owner", "o"},
                             {"permission", "644"}};
    status.update(more_status);
    return status;
  }

  std::optional<std::string> Block(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    if (id >= blocks_.size()) return std::nullopt;
    const auto& [path, number] = blocks_[id];
    const auto it = files_.find(path);
    if (it == files_.end() || number * block_bytes >= it->second.bytes.size()) return std::nullopt;
    return it->second.bytes.substr(number * block_bytes, block_bytes);
  }
  std::uint64_t IdOf(const std::string& path, std::uint64_t number) {
    const std::pair<std::string, std::uint64_t> block(path, number);
    const auto it = std::find(blocks_.begin(), blocks_.end(), block);
    if (it != blocks_.end()) return static_cast<std::uint64_t>(it - blocks_.begin());
    blocks_.push_back(block);
    return blocks_.size() - 1;
  }

  Reply Locations(const std::string& path, const Node& node, const Request& r) {
    nlohmann::json places = nlohmann::json::array();
    for (const auto& one : transfer) {
      places.push_back(
          {{"ipAddr", "127.0.0.1"}, {"hostName", "localhost"}, {"xferPort", one->port()}});
    }
    DelegationToken token;
    token.identifier = block_token;
    nlohmann::json list = nlohmann::json::array();
    const std::uint64_t begin = std::stoull(r.Get("offset"));
    for (std::uint64_t at = begin; at < node.bytes.size(); at += block_bytes) {
      if (at - begin >= std::stoull(r.Get("length"))) break;
      const std::uint64_t number = at / block_bytes;
      list.push_back(
          {{"startOffset", number * block_bytes},
           {"isCorrupt", false},
           {"blockToken", {{"urlString", token.ToUrlString()}}},
           {"block",
            {{"blockPoolId", "BP-1"},
             {"blockId", IdOf(path, number)},
             {"generationStamp", 1001},
             {"numBytes", std::min<std::uint64_t>(block_bytes, node.bytes.size() - at)}}},
           {"locations", places}});
    }
    return Json({{"LocatedBlocks",
                  {{"isUnderConstruction", under_construction}, {"locatedBlocks", list}}}});
  }

  Reply OnNameNode(const std::string& server, const Request& r) {
    if (auto fault = Faulty(server, r)) return *fault;
    const std::lock_guard lock(mutex_);
    const std::string path = PathOf(r);
    const std::string op = r.Get("op");
    const auto it = files_.find(path);
    const bool there = path == "/" || it != files_.end();
    if (op == "MKDIRS") {
      if (there && path != "/" && !it->second.folder) {
        return Exception(403, "FileAlreadyExistsException", path);
      }
      MakeFolders(path);
      return Json({{"boolean", true}});
    }
    if (op == "CREATE" || (op == "OPEN" && there) || (op == "APPEND" && there)) {
      const auto& to = dn[next_dn_++ % dn.size()];
      return Json({{"Location", "http://" + to->authority() + "/webhdfs/v1" + EscapePath(path) +
                                    "?" + r.query + "&namenoderpcaddress=fake:8020"}});
    }
    if (op == "DELETE") return Delete(path, r.Get("recursive") == "true");
    if (op == "GETDELEGATIONTOKEN") return Json({{"Token", {{"urlString", "dG9rZW4"}}}});
    if (!there) return Exception(404, "FileNotFoundException", "File does not exist: " + path);
    if (op == "RENAME") return Rename(path, r.Get("destination"), r.Get("renameoptions"));
    const Node node = path == "/" ? Node{true, ""} : it->second;
    if (op == "GETFILESTATUS") return Json({{"FileStatus", StatusOf("", node)}});
    if (op == "LISTSTATUS") return List(path, node);
    if (op == "GET_BLOCK_LOCATIONS" && !transfer.empty()) return Locations(path, node, r);
    return Exception(400, "IllegalArgumentException", "op " + op);
  }

  Reply List(const std::string& path, const Node& node) {
    nlohmann::json list = nlohmann::json::array();
    if (!node.folder) list.push_back(StatusOf("", node));
    for (const auto& [name, child] : files_) {
      if (node.folder && ParentPath(name) == path) list.push_back(StatusOf(BaseName(name), child));
    }
    return Json({{"FileStatuses", {{"FileStatus", list}}}});
  }
  Reply Delete(const std::string& path, bool recursive) {
    std::vector<std::string> below;
    for (const auto& [name, node] : files_) {
      if (IsWithin(name, path)) below.push_back(name);
    }
    if (below.size() > 1 && !recursive) {
      return Exception(403, "PathIsNotEmptyDirectoryException", path + " is non empty");
    }
    for (const std::string& name : below) files_.erase(name);
    return Json({{"boolean", !below.empty()}});
  }
  Reply Rename(const std::string& from, const std::string& to, const std::string& options) {
    if (files_.count(to) != 0 && options != "OVERWRITE") {
      if (options.empty()) return Json({{"boolean", false}});
      return Exception(403, "FileAlreadyExistsException", to);
    }
    std::map<std::string, Node> moved;
    for (auto it = files_.begin(); it != files_.end();) {
      if (!IsWithin(it->first, from)) {
        ++it;
        continue;
      }
      moved[to + it->first.substr(from.size())] = it->second;
      it = files_.erase(it);
    }
    for (auto& [name, node] : moved) files_[name] = std::move(node);
    return options.empty() ? Json({{"boolean", true}}) : Reply{};
  }

  Reply OnDataNode(const std::string& server, const Request& r) {
    if (auto fault = Faulty(server, r)) return *fault;
    const std::lock_guard lock(mutex_);
    const std::string path = PathOf(r);
    if (r.Get("op") == "CREATE") {
      Store(path, r.body);
      return {201, "", {}, {}, {}, {}, false};
    }
    const auto it = files_.find(path);
    if (it == files_.end()) return Exception(404, "FileNotFoundException", path);
    if (r.Get("op") == "APPEND") {
      it->second.bytes += r.body;
      return {};
    }
    const std::size_t offset = std::stoul(r.Get("offset"));
    return {200,  it->second.bytes.substr(offset, std::stoul(r.Get("length"))), {}, {}, {}, {},
            false};
  }

  std::mutex mutex_;
  Fault fault_;
  std::map<std::string, Node> files_;
  std::vector<std::string> log_;
  std::size_t next_dn_ = 0;
  std::vector<std::pair<std::string, std::uint64_t>> blocks_;  // by id: file, number in it
};

}  // namespace arcflow::hdfs::testing
