use elo_surgery::{checkpoint::Checkpoint, engine::*, ops::*};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = std::time::Instant::now();
    let plan = match a[1].as_str() {
        "extract" => extract(
            &Checkpoint::open(&a[2]).unwrap(),
            &Extract {
                layers: a[3].parse().unwrap(),
                shard_size: None,
            },
        ),
        "inject" => inject(
            &Checkpoint::open(&a[2]).unwrap(),
            &Checkpoint::open(&a[3]).unwrap(),
            &Inject {
                layers: None,
                ..Inject::default()
            },
        ),
        "cv" => chat_vector(
            &Checkpoint::open(&a[2]).unwrap(),
            &Checkpoint::open(&a[3]).unwrap(),
            &Checkpoint::open(&a[4]).unwrap(),
            &ChatVector::default(),
        ),
        _ => panic!(),
    }
    .unwrap();
    println!("plan {:?} {:?}", t.elapsed(), plan.cost());
    let mut o = Execution::to(a.last().unwrap());
    o.sync = std::env::var("SYNC").is_ok();
    o.threads = std::env::var("T").map_or(0, |t| t.parse().unwrap());
    if let Ok(t) = std::env::var("TILE") {
        o.tile = t.parse().unwrap();
    }
    if std::env::var("READ").is_ok() {
        o.reading = elo_surgery::format::Reading::Calls;
    }
    match std::env::var("DIGEST").as_deref() {
        Ok("none") => o.digest = None,
        Ok("sha256") => o.digest = Some(elo_surgery::format::DigestAlgorithm::Sha256),
        _ => {}
    }
    let t = std::time::Instant::now();
    println!("{:?}", execute(&plan, &o, &NoObserver));
    println!("{:?}", t.elapsed());
}
