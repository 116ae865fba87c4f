"""The Rust module of a compiled model: declarations, constants and a safe wrapper that checks lengths."""

from __future__ import annotations

import re
from string import Template

from minifer.embed.abi import ALIGNMENT, STATUS_TEXT, Interface, Status, Tensor
from minifer.embed.elements import element, parameters

_MODULE = Template("""\
// Made by minifer from the model $name. Compile the model again instead of editing this file.
//
// Use it as a module (`mod $name;`) or by `include!` within one, and link the model's archive:
// `cargo:rustc-link-search=native=FOLDER` and `cargo:rustc-link-lib=static=$name` in build.rs.
// Needs Rust 1.82. `core` and `alloc` suffice; with `--cfg minifer_no_alloc`, `core` alone.
//
//$example

#[allow(unused_imports)]
pub use self::api::*;

#[allow(dead_code, unexpected_cfgs)]
mod api {
    #[cfg(not(minifer_no_alloc))]
    extern crate alloc;
    #[cfg(not(minifer_no_alloc))]
    use alloc::boxed::Box;

    /// Bytes that a run works in, beside its inputs and outputs.
    pub const WORKSPACE_BYTES: usize = $workspace_bytes;
    /// Bytes of the weights that a run is given; 0 where they are part of the archive.
    pub const WEIGHTS_BYTES: usize = $weights_bytes;
$constants

    /// An input or output of the model.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TensorInfo {
        /// As the model names it.
        pub name: &'static str,
        /// As this module names it.
        pub identifier: &'static str,
        /// ONNX's name of the element type.
        pub dtype: &'static str,
        pub shape: &'static [usize],
        /// Size in bytes.
        pub bytes: usize,
    }

    /// The inputs, in the order of `run`'s parameters.
    pub const INPUTS: [TensorInfo; $input_count] = [$inputs];

    /// The outputs, in the order of `run`'s parameters.
    pub const OUTPUTS: [TensorInfo; $output_count] = [$outputs];

    /// Why a run was refused.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub enum Error {
        /// A slice does not hold as many elements as the tensor.
        Length { name: &'static str, expected: usize, found: usize },
$errors
        /// A status that this module does not know: it and the archive were not made together.
        Unknown(i32),
    }

    impl Error {
        fn check(status: i32) -> Result<(), Error> {
            match status {
                0 => Ok(()),
$statuses
                other => Err(Error::Unknown(other)),
            }
        }
    }

    impl core::fmt::Display for Error {
        fn fmt(&self, to: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            match self {
                Error::Length { name, expected, found } => {
                    write!(to, "{name} must have {expected} elements, not {found}")
                }
$displays
                Error::Unknown(status) => write!(to, "unknown status {status}: this module and the archive differ"),
            }
        }
    }

    impl core::error::Error for Error {}

    /// The functions of the archive, as they are.
    pub mod sys {
        use core::ffi::{c_char, c_void};

        #[repr(C)]
        pub struct Buffer {
            pub data: *mut c_void,
            pub bytes: usize,
        }

        unsafe extern "C" {
            pub fn ${name}_run(
                inputs: *const Buffer,
                input_count: usize,
                outputs: *const Buffer,
                output_count: usize,
                workspace: *mut c_void,
                workspace_bytes: usize,$sys_weights
            ) -> i32;
            pub fn ${name}_workspace_bytes() -> usize;
            pub fn ${name}_weights_bytes() -> usize;
$facts
        }
    }

    /// Memory for a run; its content means nothing.
    #[repr(C, align($alignment))]
    pub struct Workspace([u8; $room]);

    impl Workspace {
        pub const fn new() -> Self {
            Workspace([0; $room])
        }

        /// A workspace on the heap, made in place.
        #[cfg(not(minifer_no_alloc))]
        pub fn boxed() -> Box<Self> {
            let layout = core::alloc::Layout::new::<Self>();
            // SAFETY: the layout is that of Self, which is not empty and for which zeros are a value
            unsafe {
                let memory = alloc::alloc::alloc_zeroed(layout).cast::<Self>();
                if memory.is_null() {
                    alloc::alloc::handle_alloc_error(layout);
                }
                Box::from_raw(memory)
            }
        }
    }

    impl Default for Workspace {
        fn default() -> Self {
            Self::new()
        }
    }
$weights_type
    fn check(name: &'static str, expected: usize, found: usize) -> Result<(), Error> {
        if found == expected { Ok(()) } else { Err(Error::Length { name, expected, found }) }
    }

    /// Runs the model in a workspace of the caller's.
    #[allow(clippy::too_many_arguments)]
    pub fn run_in(
        workspace: &mut Workspace,$core_weights
$core_parameters
    ) -> Result<(), Error> {
$checks
        let input_table: [sys::Buffer; $input_count] = [$input_table];
        let output_table: [sys::Buffer; $output_count] = [$output_table];
        // SAFETY: lengths were checked, inputs are only read, and the borrows last until the call returns
        let status = unsafe {
            sys::${name}_run(
                input_table.as_ptr(),
                input_table.len(),
                output_table.as_ptr(),
                output_table.len(),
                (workspace as *mut Workspace).cast(),
                WORKSPACE_BYTES,$call_weights
            )
        };
        Error::check(status)
    }

    /// The model with a workspace of its own: make one in each thread.
    #[cfg(not(minifer_no_alloc))]
    pub struct Model$lifetime {
        workspace: Box<Workspace>,$field
    }

    #[cfg(not(minifer_no_alloc))]
    impl$lifetime Model$lifetime {
$new
        /// Runs the model: reads the inputs, fills the outputs.
        #[allow(clippy::too_many_arguments)]
        pub fn run(
            &mut self,
$model_parameters
        ) -> Result<(), Error> {
            run_in($arguments)
        }
    }
$default}
""")

_WEIGHTS_TYPE = """
    #[derive(Clone, Copy)]
    #[repr(C, align(@alignment))]
    struct Block([u8; @alignment]);

    /// Weights read from a file, at an address that the model takes. A file that is mapped needs no copy.
    #[cfg(not(minifer_no_alloc))]
    pub struct Weights(alloc::vec::Vec<Block>);

    #[cfg(not(minifer_no_alloc))]
    impl Weights {
        /// A copy of the content of the weights file.
        pub fn copy(bytes: &[u8]) -> Result<Self, Error> {
            check("weights", WEIGHTS_BYTES, bytes.len())?;
            let mut blocks = alloc::vec![Block([0; @alignment]); bytes.len().div_ceil(@alignment)];
            for (block, part) in blocks.iter_mut().zip(bytes.chunks(@alignment)) {
                block.0[..part.len()].copy_from_slice(part);
            }
            Ok(Weights(blocks))
        }
    }

    #[cfg(not(minifer_no_alloc))]
    impl core::ops::Deref for Weights {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            // SAFETY: `copy` made at least so many bytes, and blocks have no gaps
            unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), WEIGHTS_BYTES) }
        }
    }
""".replace("@alignment", str(ALIGNMENT))

_NEW = """\
        pub fn new() -> Self {
            Model { workspace: Workspace::boxed() }
        }
"""

_NEW_SEPARATE = f"""\
        /// The weights must begin at a multiple of {ALIGNMENT} bytes, as `Weights` and mapped files do.
        pub fn new(weights: &'w [u8]) -> Result<Self, Error> {{
            check("weights", WEIGHTS_BYTES, weights.len())?;
            if weights.as_ptr().align_offset({ALIGNMENT}) != 0 {{
                return Err(Error::Weights);
            }}
            Ok(Model {{ workspace: Workspace::boxed(), weights }})
        }}
"""

_DEFAULT = """
    #[cfg(not(minifer_no_alloc))]
    impl Default for Model {
        fn default() -> Self {
            Self::new()
        }
    }
"""

#: the names in `run_in` beside those of the tensors
_OWN = ("workspace", "weights", "input_table", "output_table", "status", "check")


def module(interface: Interface) -> str:
    """The text of NAME.rs, for Rust 1.82 and later, editions 2021 and 2024; UnsupportedError for an element type
    that Rust has not."""
    inputs, outputs = parameters(interface, *_OWN)
    separate = interface.separate
    reads = [f"{name}: &[{element(t).rust}]," for t, name in inputs]
    writes = [f"{name}: &mut [{element(t).rust}]," for t, name in outputs]
    names = [name for _, name in (*inputs, *outputs)]
    return _MODULE.substitute(
        name=interface.name,
        alignment=ALIGNMENT,
        example="".join(f"\n//     {line}" for line in example(interface)),
        workspace_bytes=interface.workspace_bytes,
        weights_bytes=interface.weights_bytes if separate else 0,
        room=max(interface.workspace_bytes, 1),
        constants="\n".join(_constants(interface)),
        input_count=len(inputs),
        output_count=len(outputs),
        inputs="".join(_info(t) for t in interface.inputs) + ("\n    " if inputs else ""),
        outputs="".join(_info(t) for t in interface.outputs) + ("\n    " if outputs else ""),
        errors="\n".join(f"        /// {STATUS_TEXT[s].capitalize()}.\n        {_error(s)}," for s in _failures()),
        statuses="\n".join(f"                {s.value} => Err(Error::{_error(s)})," for s in _failures()),
        displays="\n".join(
            f'                Error::{_error(s)} => to.write_str("{STATUS_TEXT[s]}"),' for s in _failures()
        ),
        sys_weights=_lines(16, ["weights: *const c_void,", "weights_bytes: usize,"] if separate else []),
        facts="\n".join(_facts(interface)),
        weights_type=_WEIGHTS_TYPE if separate else "",
        core_weights=_lines(8, ["weights: &[u8],"] if separate else []),
        core_parameters=_lines(8, reads + writes)[1:],
        checks=_lines(8, _checks(interface))[1:],
        input_table=_lines(12, [_buffer(name, "as_ptr().cast_mut()") for _, name in inputs])
        + ("\n        " if inputs else ""),
        output_table=_lines(12, [_buffer(name, "as_mut_ptr()") for _, name in outputs])
        + ("\n        " if outputs else ""),
        call_weights=_lines(16, ["weights.as_ptr().cast(),", "weights.len(),"] if separate else []),
        lifetime="<'w>" if separate else "",
        field=_lines(8, ["weights: &'w [u8],"] if separate else []),
        new=_NEW_SEPARATE if separate else _NEW,
        model_parameters=_lines(12, reads + writes)[1:],
        arguments=", ".join(["&mut self.workspace", *(["self.weights"] if separate else []), *names]),
        default="" if separate else _DEFAULT,
    )


def example(interface: Interface) -> list[str]:
    """The lines of the example in the module's comment, that runs the model on zeros."""
    inputs, outputs = parameters(interface, *_OWN, "model")
    path, lines = f"{interface.name}::", []
    for kind, mutable, pairs in (("INPUT", "", inputs), ("OUTPUT", "mut ", outputs)):
        for tensor, variable in pairs:
            zero = {"f32": "0.0", "f64": "0.0", "bool": "false"}.get(element(tensor).rust, "0")
            lines.append(f"let {mutable}{variable} = vec![{zero}; {path}{_constant(kind, tensor)}_SIZE];")
    if interface.separate:
        lines.append(f'let weights = {path}Weights::copy(&std::fs::read("{interface.name}.weights")?)?;')
    new = f"{path}Model::new(&weights)?" if interface.separate else f"{path}Model::new()"
    arguments = [f"&{name}" for _, name in inputs] + [f"&mut {name}" for _, name in outputs]
    return lines + [f"let mut model = {new};", f"model.run({', '.join(arguments)})?;"]


def _failures() -> list[Status]:
    return [status for status in Status if status != Status.OK]


def _error(status: Status) -> str:
    return status.name.capitalize()


def _lines(indent: int, lines: list[str]) -> str:
    return "".join(f"\n{' ' * indent}{line}" for line in lines)


def _constant(kind: str, tensor: Tensor) -> str:
    return f"{kind}_{tensor.identifier}".upper()


def _constants(interface: Interface) -> list[str]:
    lines = []
    for kind, tensors in (("INPUT", interface.inputs), ("OUTPUT", interface.outputs)):
        for tensor in tensors:
            start, shape = _constant(kind, tensor), ", ".join(map(str, tensor.shape))
            lines.append(f"    pub const {start}_SHAPE: [usize; {len(tensor.shape)}] = [{shape}];")
            lines.append(f"    pub const {start}_SIZE: usize = {tensor.size};")
    return lines


def _info(tensor: Tensor) -> str:
    fields = (
        f"name: {_text(tensor.name)}",
        f"identifier: {_text(tensor.identifier)}",
        f"dtype: {_text(tensor.dtype)}",
        f"shape: &[{', '.join(map(str, tensor.shape))}]",
        f"bytes: {tensor.bytes}",
    )
    return f"\n        TensorInfo {{ {', '.join(fields)} }},"


def _text(text: str) -> str:
    """A string literal in ASCII."""
    return '"' + re.sub(r"[^ !#-\[\]-~]", lambda found: f"\\u{{{ord(found[0]):x}}}", text) + '"'


def _facts(interface: Interface) -> list[str]:
    signatures = {
        "count": "() -> usize",
        "name": "(index: usize) -> *const c_char",
        "dtype": "(index: usize) -> i32",
        "rank": "(index: usize) -> usize",
        "dim": "(index: usize, axis: usize) -> i64",
        "bytes": "(index: usize) -> usize",
    }
    return [
        f"            pub fn {interface.name}_{kind}_{fact}{signature};"
        for kind in ("input", "output")
        for fact, signature in signatures.items()
    ]


def _checks(interface: Interface) -> list[str]:
    inputs, outputs = parameters(interface, *_OWN)
    lines = ['check("weights", WEIGHTS_BYTES, weights.len())?;'] if interface.separate else []
    for kind, pairs in (("INPUT", inputs), ("OUTPUT", outputs)):
        for tensor, name in pairs:
            lines.append(f'check("{kind.lower()} {tensor.identifier}", {_constant(kind, tensor)}_SIZE, {name}.len())?;')
    return lines


def _buffer(name: str, pointer: str) -> str:
    return f"sys::Buffer {{ data: {name}.{pointer}.cast(), bytes: core::mem::size_of_val({name}) }},"
