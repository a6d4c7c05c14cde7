//! The order that PyTorch's sort on the CPU leaves equal values in.
//!
//! It is introsort (Musser, Software: Practice and Experience 27, 1997), with the choices of the GNU C++ library: the pivot is the
//! median of the second, middle and last element, swapped to the front; runs of 16 and less are left to one insertion sort at the
//! end; below 2 log2(n) levels a heap sorts the rest. Values alone are compared, so where equal ones end up depends on every one of these.

/// A value and where it was.
pub(super) type Keyed<T> = (T, u32);

/// Runs of this length are left to the insertion sort.
const SHORT: usize = 16;

/// Runs of this length are split without asking whether to go on.
const LONG: usize = 1 << 20;

/// Sorts as `torch.sort` does without `stable`: NaNs are larger than everything. Once `stop` says so, the order is left as it is.
pub(super) fn sort<T: PartialOrd + Copy>(
    items: &mut [Keyed<T>],
    descending: bool,
    stop: &dyn Fn() -> bool,
) {
    if descending {
        introsort(items, &|a, b| (is_nan(a) && !is_nan(b)) || a > b, stop);
    } else {
        introsort(items, &|a, b| (!is_nan(a) && is_nan(b)) || a < b, stop);
    }
}

#[expect(clippy::eq_op, reason = "nothing else tells of any type")]
fn is_nan<T: PartialOrd + Copy>(value: T) -> bool {
    value != value
}

fn introsort<T: Copy, F: Fn(T, T) -> bool>(
    items: &mut [Keyed<T>],
    before: &F,
    stop: &dyn Fn() -> bool,
) {
    if items.len() < 2 {
        return;
    }
    let levels = 2 * items.len().ilog2();
    divide(items, levels, before, stop);
    // What is not split would take quadratic time.
    if stop() {
        return;
    }
    let (front, _) = items.split_at_mut(SHORT.min(items.len()));
    insertion(front, before);
    for i in SHORT..items.len() {
        sink(items, i, before);
    }
}

/// Splits runs until they are short.
fn divide<T: Copy, F: Fn(T, T) -> bool>(
    mut items: &mut [Keyed<T>],
    mut levels: u32,
    before: &F,
    stop: &dyn Fn() -> bool,
) {
    while items.len() > SHORT {
        if items.len() > LONG && stop() {
            return;
        }
        if levels == 0 {
            heap_sort(items, before);
            return;
        }
        levels -= 1;
        let cut = partition(items, before);
        let (front, back) = items.split_at_mut(cut);
        divide(back, levels, before, stop);
        items = front;
    }
}

/// Puts the pivot in front and splits the rest by it; where the second half begins.
fn partition<T: Copy, F: Fn(T, T) -> bool>(items: &mut [Keyed<T>], before: &F) -> usize {
    let (second, middle, last) = (1, items.len() / 2, items.len() - 1);
    items.swap(0, median(items, [second, middle, last], before));
    let pivot = items[0].0;
    let (mut low, mut high) = (1, items.len());
    // The median of three bounds both walks.
    loop {
        while before(items[low].0, pivot) {
            low += 1;
        }
        high -= 1;
        while before(pivot, items[high].0) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        items.swap(low, high);
        low += 1;
    }
}

/// The place of the median; which of equal ones it is, is part of the algorithm.
fn median<T: Copy, F: Fn(T, T) -> bool>(
    items: &[Keyed<T>],
    [a, b, c]: [usize; 3],
    before: &F,
) -> usize {
    let less = |i: usize, j: usize| before(items[i].0, items[j].0);
    if less(a, b) {
        if less(b, c) {
            b
        } else if less(a, c) {
            c
        } else {
            a
        }
    } else if less(a, c) {
        a
    } else if less(b, c) {
        c
    } else {
        b
    }
}

/// An element that comes before the first goes to the front at once.
fn insertion<T: Copy, F: Fn(T, T) -> bool>(items: &mut [Keyed<T>], before: &F) {
    for i in 1..items.len() {
        if before(items[i].0, items[0].0) {
            items[..=i].rotate_right(1);
        } else {
            sink(items, i, before);
        }
    }
}

/// Moves an element down to where it belongs; something before it is not larger.
fn sink<T: Copy, F: Fn(T, T) -> bool>(items: &mut [Keyed<T>], mut i: usize, before: &F) {
    let item = items[i];
    while i > 0 && before(item.0, items[i - 1].0) {
        items[i] = items[i - 1];
        i -= 1;
    }
    items[i] = item;
}

/// Sorts by a heap whose top is what comes last.
fn heap_sort<T: Copy, F: Fn(T, T) -> bool>(items: &mut [Keyed<T>], before: &F) {
    for top in (0..items.len() / 2).rev() {
        let item = items[top];
        settle(items, top, item, before);
    }
    for end in (1..items.len()).rev() {
        let item = items[end];
        items[end] = items[0];
        settle(&mut items[..end], 0, item, before);
    }
}

/// Fills a hole in a heap: the larger child moves up all the way down, then the item rises to its place.
fn settle<T: Copy, F: Fn(T, T) -> bool>(
    heap: &mut [Keyed<T>],
    top: usize,
    item: Keyed<T>,
    before: &F,
) {
    let mut hole = top;
    loop {
        let right = 2 * hole + 2;
        let child = match (heap.get(right - 1), heap.get(right)) {
            (Some(left), Some(other)) if before(other.0, left.0) => right - 1,
            (Some(_), Some(_)) => right,
            (Some(_), None) => right - 1,
            _ => break,
        };
        heap[hole] = heap[child];
        hole = child;
    }
    while hole > top {
        let parent = (hole - 1) / 2;
        if !before(heap[parent].0, item.0) {
            break;
        }
        heap[hole] = heap[parent];
        hole = parent;
    }
    heap[hole] = item;
}
