//! Machines are quick enough to be used without a second thought. Alone in this file,
//! so that no other test runs at the same time.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use larder_vm::{Image, Machine};

#[test]
fn true_is_back_in_eight_seconds_once_the_image_is_cached() {
    Image::get().unwrap();
    // Eight seconds of a machine that does nothing else: what others take of the
    // processors is not ours to answer for.
    let load: f64 = fs::read_to_string("/proc/loadavg")
        .unwrap()
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap();
    let processors = thread::available_parallelism().unwrap().get();
    let crowd = (load / f64::from(u32::try_from(processors).unwrap())).max(1.0);
    let limit = Duration::from_secs(8).mul_f64(crowd);
    let best = (0..3)
        .map(|_| {
            let began = Instant::now();
            assert!(Machine::new().run(["true"]).unwrap().success());
            began.elapsed()
        })
        .min()
        .unwrap();
    assert!(best <= limit, "true took {best:?} with a load of {load}");
}
