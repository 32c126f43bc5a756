# cmake --install BUILD --prefix FOLDER: a folder that can be carried to a machine with the same or a newer
# glibc and libstdc++, and that needs no packages there. Programs are stripped; what was not built is left
# out, and said.
set(programs ringlet)
if(RINGLET_TESTS)
  list(APPEND programs cuda_tests cuda_training_tests gpu_bench kernels_tests rings)
  foreach(program operations steps)  # need Google Benchmark
    if(TARGET ${program})
      list(APPEND programs ${program})
    endif()
  endforeach()
endif()

# Build trees have the same path: nothing is rewritten later, and no padding names the folder one stands in.
# As RPATH and not RUNPATH it also leads to what the libraries in lib/ need themselves.
set_target_properties(${programs} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib" BUILD_WITH_INSTALL_RPATH ON)
foreach(program ${programs})
  target_link_options(${program} PRIVATE LINKER:--disable-new-dtags)
endforeach()
if(RINGLET_TESTS AND TARGET operations AND OPENBLAS)  # the library that was found, of several by that name
  get_filename_component(openblas_folder ${OPENBLAS} DIRECTORY)
  set_target_properties(operations PROPERTIES INSTALL_RPATH "$ORIGIN/../lib;${openblas_folder}")
endif()
set(built ${programs})
if(TARGET ringlet_cuda)
  # CUDA's libraries are the other machine's: RUNPATH, so that LD_LIBRARY_PATH goes first.
  get_filename_component(cuda_libraries ${CUBLASLT} DIRECTORY)
  set(cuda_path "$ORIGIN/../lib" ${cuda_libraries} /usr/local/cuda/lib64)
  list(REMOVE_DUPLICATES cuda_path)
  set_target_properties(ringlet_cuda PROPERTIES INSTALL_RPATH "${cuda_path}" BUILD_WITH_INSTALL_RPATH ON)
  target_link_options(ringlet_cuda PRIVATE LINKER:--enable-new-dtags)
  list(APPEND built ringlet_cuda)
endif()

install(CODE "set(CMAKE_INSTALL_DO_STRIP TRUE)")
install(TARGETS ${built} OPTIONAL RUNTIME DESTINATION bin LIBRARY DESTINATION bin)
install(DIRECTORY configs/ DESTINATION configs)
install(FILES README.md DESTINATION .)
if(RINGLET_TESTS)
  install(PROGRAMS tests/gpu/run.sh DESTINATION tests/gpu)
  install(FILES tests/peers/gpu_torch.py tests/peers/train_torch.py DESTINATION tests/peers)
  install(PROGRAMS tests/bench/run.sh DESTINATION tests/bench)
  install(FILES tests/bench/gpu_tables.py tests/bench/speed_tables.py DESTINATION tests/bench)
endif()

list(TRANSFORM built REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE built_files)
install(CODE "set(built_files \"${built_files}\")")
install(CODE [[
  set(programs)
  set(modules)
  foreach(file ${built_files})
    if(NOT EXISTS ${file})
      message(STATUS "Left out, not built: ${file}")
    elseif(file MATCHES "\\.so$")
      list(APPEND modules ${file})
    else()
      list(APPEND programs ${file})
    endif()
  endforeach()
  # glibc and the compiler's libraries are on every machine; CUDA's come with its toolkit or Python packages.
  file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${programs} MODULES ${modules} RESOLVED_DEPENDENCIES_VAR libraries
    PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv|util|stdc\\+\\+|gcc_s)\\.so"
                        "^lib(cuda|cudart|cublas|cublasLt|nccl)\\.so")
  foreach(library ${libraries})
    # The file itself under the name that programs ask for: links do not survive every way of carrying.
    get_filename_component(name ${library} NAME)
    file(REAL_PATH ${library} library)
    file(INSTALL DESTINATION "${CMAKE_INSTALL_PREFIX}/lib" TYPE FILE RENAME ${name} FILES ${library})
  endforeach()
  execute_process(COMMAND du -sh "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}" OUTPUT_VARIABLE size
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  message(STATUS "Whole folder: ${size}")
]])
