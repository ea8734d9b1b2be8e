// SPDX-License-Identifier: Apache-2.0
// CounterPage: creation and checked attachment.
#include "arcflow/base/counter_page.h"

#include <sys/stat.h>

#include <cerrno>
#include <limits>
#include <new>
#include <string>
#include <utility>

namespace arcflow {

Result<std::shared_ptr<CounterPage>> CounterPage::Create() {
  ARC_ASSIGN(Fd fd, CreateMemfd("arcflow-counters", kSizeBytes));
  ARC_ASSIGN(Mapping mapping, Mapping::Map(fd, kSizeBytes, /*writable=*/true, /*populate=*/true));
  auto* layout = new (mapping.data()) CounterPageLayout();
  layout->magic = CounterPageLayout::kMagic;
  layout->version = CounterPageLayout::kVersion;
  layout->user_loss.store(std::numeric_limits<double>::quiet_NaN(), std::memory_order_relaxed);
  return std::shared_ptr<CounterPage>(new CounterPage(std::move(fd), std::move(mapping)));
}

Result<std::shared_ptr<CounterPage>> CounterPage::Attach(Fd fd) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return Status::FromErrno(errno, "counter page: fstat");
  if (static_cast<std::size_t>(st.st_size) != kSizeBytes) {
    return InvalidArgument("counter page has " + std::to_string(st.st_size) + " bytes instead of " +
                           std::to_string(kSizeBytes));
  }
  auto mapping = Mapping::Map(fd, kSizeBytes, /*writable=*/true, /*populate=*/true);
  if (!mapping.ok()) return mapping.status().WithContext("counter page");
  const auto* layout = reinterpret_cast<const CounterPageLayout*>(mapping->data());
  if (layout->magic != CounterPageLayout::kMagic) return InvalidArgument("counter page: bad magic");
  if (layout->version != CounterPageLayout::kVersion) {
    return InvalidArgument("counter page: version " + std::to_string(layout->version) +
                           ", this side speaks " + std::to_string(CounterPageLayout::kVersion));
  }
  return std::shared_ptr<CounterPage>(new CounterPage(std::move(fd), std::move(*mapping)));
}

}  // namespace arcflow
