//! Faults that ROCm tells of by events of its HSA runtime, on a simulated GPU beside a library that looks like that runtime.
//! Skipped, with the reason printed, where there is no C++ compiler.

#![cfg(target_os = "linux")]

mod common;

use common::simulator::{self, Faults, compiler, simulated_once};
use common::{Tiny, greedy, tokens};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use wavelm::{Device, KvType, LoadOptions};

const LAUNCH: usize = 2;

/// As ROCr does it: an event that no handler takes ends the process; here the caller learns of it.
const RUNTIME: &str = r#"
typedef struct { unsigned kind; unsigned long long agent, address; unsigned reasons; } Event;
typedef int (*Handler)(const Event *, void *);
static Handler handlers[8];
static void *data[8];
static int count;
int hsa_amd_register_system_event_handler(Handler handler, void *with) {
  if (!handler || count == 8) return 0x1001;
  handlers[count] = handler;
  data[count++] = with;
  return 0;
}
int mock_handlers(void) { return count; }
int mock_is_taken(unsigned kind, unsigned long long address) {
  Event event = {kind, 77, address, 1};
  for (int i = 0; i < count; i++)
    if (handlers[i](&event, data[i]) == 0) return 1;
  return 0;
}
"#;

/// The look-alike of the HSA runtime, which must be loaded before the first use of a GPU.
struct Runtime(libloading::Library);

impl Runtime {
    fn load() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let name = format!("hsa-{}", std::process::id());
        let (source, library): (PathBuf, PathBuf) =
            (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
        std::fs::write(&source, RUNTIME).unwrap();
        let mut command = Command::new(compiler().unwrap());
        command.args(["-x", "c", "-shared", "-fPIC", "-Wl,-soname,libhsa-runtime64.so.1", "-o"]);
        let output = command.arg(&library).arg(&source).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: the library was just built and has no constructors.
        let loaded = Self(unsafe { libloading::Library::new(&library) }.unwrap());
        for file in [source, library] {
            std::fs::remove_file(file).unwrap();
        }
        loaded
    }

    fn handlers(&self) -> i32 {
        // SAFETY: the signature is that of the function above.
        unsafe { self.0.get::<extern "C" fn() -> i32>(b"mock_handlers").unwrap()() }
    }

    /// Whether somebody takes an event.
    fn is_taken(&self, kind: u32, address: u64) -> bool {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(u32, u64) -> i32>(b"mock_is_taken").unwrap()(kind, address) != 0 }
    }
}

fn options(device: Device) -> LoadOptions {
    simulator::options().threads(1).device(device).kv_type(KvType::F32)
}

/// An event while a kernel hangs, as it does after a fault: nobody waits for the deadline of 30 seconds.
fn assert_rescued(kind: u32, said: &str) {
    let runtime = Runtime::load();
    assert_eq!(runtime.handlers(), 0);
    let expected = greedy(&mut Tiny::default().load(options(Device::Cpu)).session().unwrap(), &tokens(1, 20), 8);
    assert_eq!(runtime.handlers(), 0, "a GPU was used");
    let model = Tiny::default().load(options(Device::Auto));
    assert_eq!((model.device(), runtime.handlers()), (Device::Hip(0), 1));
    // A fault at another time is another's.
    assert!(!runtime.is_taken(kind, 8) && !runtime.is_taken(kind, 8));
    let mut session = model.session().unwrap();
    greedy(&mut session, &tokens(1, 20), 2).unwrap();
    assert!(!runtime.is_taken(kind, 8));
    assert_eq!(session.device(), Device::Hip(0));

    Faults::new().hang(LAUNCH, 20);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let text = scope.spawn(|| greedy(&mut model.session().unwrap(), &tokens(1, 20), 8));
        while !runtime.is_taken(kind, 0xdead_0000) {
            assert!(!text.is_finished(), "nobody took the event");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(text.join().unwrap().unwrap().len(), 8);
    });
    assert!(began.elapsed() < Duration::from_secs(25), "it took {:?}", began.elapsed());
    let report = model.device_report().to_string();
    assert!(model.device() == Device::Cpu && report.contains(said), "{report}");
    assert_eq!(greedy(&mut session, &tokens(1, 20), 8).unwrap(), expected.unwrap());
    // No new model goes there either.
    assert_eq!(Tiny::default().load(options(Device::Auto)).device(), Device::Cpu);
    assert_eq!(runtime.handlers(), 1);
}

#[test]
fn a_memory_fault_moves_sessions_at_once() {
    simulated_once("a_memory_fault_moves_sessions_at_once", &[], || {
        assert_rescued(0, "an AMD GPU reported a memory fault at address 0xdead0000");
    });
}

#[test]
fn a_hardware_exception_moves_sessions_at_once() {
    simulated_once("a_hardware_exception_moves_sessions_at_once", &[], || {
        assert_rescued(1, "an AMD GPU reported a hardware exception");
    });
}

#[test]
fn unknown_events_are_not_taken() {
    simulated_once("unknown_events_are_not_taken", &[], || {
        let runtime = Runtime::load();
        let model = Tiny::default().load(options(Device::Auto));
        assert_eq!((model.device(), runtime.handlers()), (Device::Hip(0), 1));
        std::thread::scope(|scope| {
            let text = scope.spawn(|| greedy(&mut model.session().unwrap(), &tokens(1, 20), 8));
            while !text.is_finished() {
                assert!(!runtime.is_taken(3, 8) && !runtime.is_taken(99, 8));
                std::thread::sleep(Duration::from_millis(1));
            }
            text.join().unwrap().unwrap();
        });
        assert_eq!(model.device(), Device::Hip(0));
    });
}
