//! The shipped PTX as C++, statement by statement, so that the very text a GPU's driver gets can be run on the CPU.
//!
//! What the statements are made of is in `tests/cuda/ptx_on_cpu.h`. PTX that is not used by the kernels is not known here.

use std::fmt::Write;

/// How `tests/cuda/kernels.cpp` begins a launch, here too.
const LAUNCH: &str = r#"};

} // namespace

extern "C" int elo_host_launch(const char* name, unsigned grid, unsigned block, void** parameters) {
    return ptx::launch(ENTRIES, name, grid, block, parameters);
}
"#;

/// A source that takes the place of `tests/cuda/kernels.cpp`.
pub(crate) fn as_cpp(ptx: &str) -> String {
    let mut cpp = "#include \"ptx_on_cpu.h\"\n\nusing namespace ptx;\n\nnamespace {\n".to_owned();
    let mut entries = "\nconst Entry ENTRIES[] = {\n".to_owned();
    for text in ptx.split(".visible .entry ").skip(1) {
        let (name, rest) = text.split_once('(').unwrap();
        let (body, _) = rest.split_once("\n{\n").unwrap().1.split_once("\n}\n").unwrap();
        let mut function = Function { parameters: format!("{name}_param_0"), shared: None };
        let lines = body.lines().map(str::trim).filter(|line| !line.is_empty());
        let statements: Vec<String> = lines.map(|line| function.statement(line)).collect();
        writeln!(cpp, "\nvoid {name}(void** parameters) {{\n{}\n}}", statements.join("\n"))
            .unwrap();
        let barriers = body.contains("bar.sync");
        writeln!(entries, "    {{\"{name}\", {name}, {barriers}}},").unwrap();
    }
    cpp + &entries + LAUNCH
}

struct Function {
    parameters: String,
    /// The array in shared memory: no kernel has more than one.
    shared: Option<String>,
}

impl Function {
    fn statement(&mut self, line: &str) -> String {
        if line == "{" || line == "}" {
            return String::new();
        }
        if let Some(label) = line.strip_suffix(':') {
            return format!("{}:;", label.trim_start_matches('$'));
        }
        if line.starts_with('.') {
            return self.declaration(line);
        }
        let line = line.strip_suffix(';').unwrap_or_else(|| unknown(line));
        let (guard, line) = match line.strip_prefix('@') {
            Some(guarded) => guarded.split_once(char::is_whitespace).unwrap(),
            None => ("", line),
        };
        let statement = self.instruction(line.trim());
        match guard {
            "" => statement,
            _ => format!("if ({}) {statement}", register(guard)),
        }
    }

    /// Registers, shared memory; of the rest nothing follows here.
    fn declaration(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.trim_end_matches(';').split_whitespace().collect();
        match words.as_slice() {
            [".reg", kind, registers] => {
                let (name, count) = registers.trim_end_matches('>').split_once('<').unwrap();
                let name = register(name);
                let all = (0..count.parse().unwrap()).map(|i: u32| format!("{name}{i} = 0"));
                format!("{} {};", &kind[1..], all.collect::<Vec<_>>().join(", "))
            }
            [".shared", ".align", _, _, array] => {
                let name = array.split_once('[').unwrap().0.to_owned();
                assert_eq!(self.shared.replace(name), None, "{line}");
                String::new()
            }
            _ => String::new(),
        }
    }

    fn instruction(&self, line: &str) -> String {
        let (operation, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let parts: Vec<&str> = operation.split('.').collect();
        let kind = *parts.last().unwrap();
        let a = arguments(rest);
        match parts[0] {
            "ret" => "return;".into(),
            "bra" => format!("goto {};", a[0].trim_start_matches('$')),
            "bar" => "__syncthreads();".into(),
            "ld" => self.load(parts[1], kind, &a),
            "st" => self.store(parts[1], kind, &a),
            "atom" => {
                let (to, value) = (self.address(parts[1], a[1]), self.value(kind, a[2]));
                format!("set({}, atomicAdd(at<{kind}>({to}), {value}));", register(a[0]))
            }
            "mov" if rest.contains('{') => self.halves(kind, &a),
            "mul" if parts[1] == "wide" => {
                let (x, y) = (self.value(kind, a[1]), self.value(kind, a[2]));
                format!("set({}, wide({x}, {y}));", register(a[0]))
            }
            "setp" => {
                assert_eq!(parts.len(), 3, "{line}");
                let (x, y) = (self.value(kind, a[1]), self.value(kind, a[2]));
                format!("{} = {}({x}, {y});", register(a[0]), parts[1])
            }
            "selp" => {
                let (x, y) = (self.value(kind, a[1]), self.value(kind, a[2]));
                format!("set({}, selp_({x}, {y}, {}));", register(a[0]), register(a[3]))
            }
            "cvt" if operation.contains(".f") => {
                let from = if kind == "f16" { "u16" } else { kind };
                let function = parts[1..].join("_");
                format!("set({}, {function}({}));", register(a[0]), self.value(from, a[1]))
            }
            "cvt" => {
                let value = self.value(kind, a[1]);
                format!("set({}, ({}){value});", register(a[0]), parts[1])
            }
            name => {
                let rounds_or_not =
                    parts[1..].iter().all(|part| ["rn", "lo", "to", "global", kind].contains(part));
                assert!(rounds_or_not, "{line}");
                let values: Vec<String> = a[1..].iter().map(|x| self.value(kind, x)).collect();
                format!("set({}, {name}_<{kind}>({}));", register(a[0]), values.join(", "))
            }
        }
    }

    fn load(&self, space: &str, kind: &str, a: &[&str]) -> String {
        let targets = elements(a[0]);
        let from = format!("at<{kind}>({}, {})", self.address(space, a[1]), targets.len());
        let sets = targets.iter().enumerate();
        let sets = sets.map(|(i, to)| format!("set({}, from[{i}]);", register(to)));
        format!("{{ const {kind}* from = {from}; {} }}", sets.collect::<Vec<_>>().join(" "))
    }

    fn store(&self, space: &str, kind: &str, a: &[&str]) -> String {
        let sources = elements(a[1]);
        let to = format!("at<{kind}>({}, {})", self.address(space, a[0]), sources.len());
        let sets = sources.iter().enumerate();
        let sets = sets.map(|(i, from)| format!("to[{i}] = {};", self.value(kind, from)));
        format!("{{ {kind}* to = {to}; {} }}", sets.collect::<Vec<_>>().join(" "))
    }

    /// `mov.b32 %r, {%rs, %rs}` and its opposite, for 64 bits too.
    fn halves(&self, kind: &str, a: &[&str]) -> String {
        let (half, bits) = match kind {
            "b32" => ("u16", 16),
            "b64" => ("u32", 32),
            _ => unknown(kind),
        };
        if let [low, high] = elements(a[1])[..] {
            let (low, high) = (self.value(half, low), self.value(half, high));
            return format!("set({}, ({kind}){low} | ({kind}){high} << {bits});", register(a[0]));
        }
        let [low, high] = elements(a[0])[..] else { unknown(a[0]) };
        let (low, high, all) = (register(low), register(high), self.value(kind, a[1]));
        format!(
            "{{ const {kind} all = {all}; set({low}, ({half})all); set({high}, ({half})(all >> {bits})); }}"
        )
    }

    fn address(&self, space: &str, text: &str) -> String {
        let text = text.trim_start_matches('[').trim_end_matches(']');
        let (base, offset) = text.split_once('+').unwrap_or((text, "0"));
        let address = format!("{} + ({offset})", self.value("u64", base));
        if space == "shared" { format!("shared({address})") } else { address }
    }

    /// An operand, as the type that the instruction takes it for.
    fn value(&self, kind: &str, text: &str) -> String {
        let special = [
            ("%tid.x", "threadIdx.x"),
            ("%ntid.x", "blockDim.x"),
            ("%ctaid.x", "blockIdx.x"),
            ("%nctaid.x", "gridDim.x"),
        ];
        if let Some((_, name)) = special.iter().find(|(name, _)| *name == text) {
            format!("in<{kind}>({name})")
        } else if text.starts_with('%') {
            format!("in<{kind}>({})", register(text))
        } else if let Some(bits) = text.strip_prefix("0f") {
            format!("in<{kind}>(single(0x{bits}u))")
        } else if let Some(bits) = text.strip_prefix("0d") {
            format!("in<{kind}>(twice(0x{bits}ull))")
        } else if text == self.parameters {
            "(u64)parameters[0]".into()
        } else if self.shared.as_deref() == Some(text) {
            format!("({kind})0")
        } else {
            let number: i128 = text.parse().unwrap_or_else(|_| unknown(text));
            let bits = number.cast_unsigned() & u128::from(u64::MAX);
            format!("({kind}){bits:#x}ull")
        }
    }
}

/// `%f32` is a register, `f32` a type.
fn register(text: &str) -> String {
    text.replace('%', "r_")
}

/// Separated by commas, but not inside of braces.
fn arguments(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let split = text.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    split.map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// `{a, b}` or one.
fn elements(text: &str) -> Vec<&str> {
    let inside = text.trim_start_matches('{').trim_end_matches('}');
    inside.split(',').map(str::trim).collect()
}

fn unknown(text: &str) -> ! {
    panic!("PTX that the kernels did not use before: {text}")
}
