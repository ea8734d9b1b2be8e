// SPDX-License-Identifier: Apache-2.0
// Files of HDFS for Python code that has no TensorFlow: log folders, checkpoints, doctor.
#include <nanobind/stl/string.h>

#include <memory>
#include <string>
#include <utility>

#include "arcflow/hdfs/file_reader.h"
#include "arcflow/hdfs/file_system.h"
#include "core_bindings.h"

namespace arcflow::bindings {
namespace {

using hdfs::FileStatus;
using hdfs::FileSystem;

/// Runs `call(file system)` in a thread of its own; `call` owns its arguments.
template <typename Call>
auto InFileSystem(Call call) {
  return InThread(
      [call = std::move(call)]() mutable -> decltype(call(std::declval<FileSystem&>())) {
        auto file_system = FileSystem::Default();
        if (!file_system.ok()) return file_system.status();
        return call(**file_system);
      });
}

nb::dict ToDict(const FileStatus& status) {
  nb::dict out;
  out["name"] = status.name;
  out["is_directory"] = status.is_directory;
  out["length"] = status.length;
  out["modified_ms"] = status.modified_ms;
  return out;
}

nb::list List(const std::string& uri) {
  const auto entries = ValueOrThrow(InFileSystem([uri](FileSystem& fs) { return fs.List(uri); }));
  nb::list out;
  for (const FileStatus& entry : entries) out.append(ToDict(entry));
  return out;
}

nb::list Glob(const std::string& pattern) {
  const auto paths =
      ValueOrThrow(InFileSystem([pattern](FileSystem& fs) { return fs.Glob(pattern); }));
  nb::list out;
  for (const std::string& path : paths) out.append(nb::str(path.c_str(), path.size()));
  return out;
}

void Append(const std::string& uri, std::string bytes) {
  OrThrow(InFileSystem([uri, bytes = std::move(bytes)](FileSystem& fs) -> Status {
    ARC_ASSIGN(const auto writer, fs.OpenForAppend(uri));
    ARC_TRY(writer->Append(bytes));
    return writer->Close();
  }));
}

/// An open file. Reads own what they touch: a signal may leave one running.
struct OpenFile {
  std::shared_ptr<hdfs::FileReader> reader;
};

OpenFile Open(const std::string& uri) {
  return {
      ValueOrThrow(InFileSystem([uri](FileSystem& fs) -> Result<std::shared_ptr<hdfs::FileReader>> {
        ARC_ASSIGN(auto reader, fs.Open(uri));
        return std::shared_ptr<hdfs::FileReader>(std::move(reader));
      }))};
}

nb::bytes Read(const OpenFile& file, std::uint64_t offset, std::size_t size) {
  return ToBytes(
      ValueOrThrow(InThread([reader = file.reader, offset, size]() -> Result<std::string> {
        std::string bytes(size, '\0');
        ARC_ASSIGN(const std::size_t n, reader->Read(offset, bytes));
        bytes.resize(n);
        return bytes;
      })));
}

}  // namespace

void BindHdfs(nb::module_& module) {
  nb::class_<OpenFile>(module, "HdfsFile", "A file of HDFS, open for reading.")
      .def(nb::new_(&Open), nb::arg("uri"))
      .def("read", &Read, nb::arg("offset"), nb::arg("size"))
      .def_prop_ro("size", [](const OpenFile& file) { return file.reader->size(); });
  module.def(
      "hdfs_read",
      [](const std::string& uri, std::size_t max_bytes) {
        return ToBytes(ValueOrThrow(
            InFileSystem([uri, max_bytes](FileSystem& fs) { return fs.ReadAll(uri, max_bytes); })));
      },
      nb::arg("uri"), nb::arg("max_bytes"));
  module.def(
      "hdfs_write",
      [](const std::string& uri, const nb::bytes& bytes) {
        OrThrow(InFileSystem([uri, copy = std::string(View(bytes))](FileSystem& fs) {
          return fs.WriteAll(uri, copy);
        }));
      },
      nb::arg("uri"), nb::arg("bytes"));
  module.def(
      "hdfs_append",
      [](const std::string& uri, const nb::bytes& bytes) { Append(uri, std::string(View(bytes))); },
      nb::arg("uri"), nb::arg("bytes"));
  module.def(
      "hdfs_stat",
      [](const std::string& uri) {
        return ToDict(ValueOrThrow(InFileSystem([uri](FileSystem& fs) { return fs.Stat(uri); })));
      },
      nb::arg("uri"));
  module.def("hdfs_list", &List, nb::arg("uri"));
  module.def("hdfs_glob", &Glob, nb::arg("pattern"));
  module.def(
      "hdfs_mkdirs",
      [](const std::string& uri) {
        OrThrow(InFileSystem([uri](FileSystem& fs) { return fs.MakeDirectories(uri); }));
      },
      nb::arg("uri"));
  module.def(
      "hdfs_delete",
      [](const std::string& uri, bool recursive) {
        OrThrow(
            InFileSystem([uri, recursive](FileSystem& fs) { return fs.Delete(uri, recursive); }));
      },
      nb::arg("uri"), nb::arg("recursive") = false);
  module.def(
      "hdfs_rename",
      [](const std::string& from, const std::string& to, bool overwrite) {
        OrThrow(InFileSystem(
            [from, to, overwrite](FileSystem& fs) { return fs.Rename(from, to, overwrite); }));
      },
      nb::arg("source"), nb::arg("target"), nb::arg("overwrite") = true);
  module.def(
      "hdfs_delegation_token",
      [](const std::string& uri, const std::string& renewer) {
        return ValueOrThrow(InFileSystem(
            [uri, renewer](FileSystem& fs) { return fs.NewDelegationToken(uri, renewer); }));
      },
      nb::arg("uri"), nb::arg("renewer") = "");
}

}  // namespace arcflow::bindings
