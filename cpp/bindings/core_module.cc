// SPDX-License-Identifier: Apache-2.0
// arcflow._core: the module, and the one bridge from Status to exceptions.
#include <string>

#include "core_bindings.h"

namespace arcflow::bindings {

void Raise(const Status& status) {
  // Imported when needed: the package may be half imported while this module loads.
  const nb::object from_code = nb::module_::import_("arcflow.errors").attr("from_code");
  const std::string_view code = CodeName(status.code());
  const std::string_view message = status.message();
  // Messages carry text of other processes: what is not UTF-8 is shown, not raised.
  const nb::object text = nb::steal(PyUnicode_DecodeUTF8(
      message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace"));
  if (!text.is_valid()) throw nb::python_error();
  const nb::object error = from_code(nb::str(code.data(), code.size()), text);
  PyErr_SetObject(error.type().ptr(), error.ptr());
  throw nb::python_error();
}

}  // namespace arcflow::bindings

NB_MODULE(_core, module) {
  namespace bindings = arcflow::bindings;
  // Objects alive at the end of the interpreter (a traceback holds them after Ctrl-C) are no news
  // for users.
  nanobind::set_leak_warnings(false);
  module.doc() = "The native core of Arcflow: coordinator, agents, nodes and feeds.";
  module.attr("version") = ARC_VERSION;
  bindings::BindControl(module);
  bindings::BindFeed(module);
  bindings::BindHdfs(module);
  bindings::BindNode(module);
  bindings::BindSide(module);
}
